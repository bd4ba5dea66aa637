"""The experiment: the split, the network, the training loop and the form for the machinery."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.classifier.data import Table, load_table, save_table
from pipeline.classifier.network import Classifier, load_model, save_model
from pipeline.classifier.training import Batch, State, fit, log_loss
from pipeline.core.errors import PipelineError
from pipeline.core.metrics import load_metrics, with_role
from pipeline.experiment import EXPERIMENT
from pipeline.params import TrainParams, load_params

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def rows() -> Batch:
    """Two well separated classes of 40 rows with three features."""
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(40) % 2
    return features + 4 * classes[:, None], classes


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> TrainParams:
    monkeypatch.chdir(ROOT)
    return load_params().train.model_copy(update={"n_epochs": 8, "lr": 0.02})


def trained(rows: Batch, params: TrainParams, state: State | None = None) -> State:
    torch.manual_seed(params.seed)
    model = Classifier(3, 2, hidden_size=4)
    model.standardise(rows[0])
    return fit(model, rows, rows, params, state=state)


def test_a_table_comes_back_to_the_bit(tmp_path: Path) -> None:
    """Features and classes are saved and loaded unchanged; a damaged file is an error."""
    table = Table(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), np.arange(5))
    save_table(table, tmp_path / "table.safetensors")
    back = load_table(tmp_path / "table.safetensors")
    assert (back.features == table.features).all()
    assert (back.classes == table.classes).all()
    (tmp_path / "table.safetensors").write_bytes(b"damaged")
    with pytest.raises(PipelineError, match="is damaged"):
        load_table(tmp_path / "table.safetensors")


def test_training_learns_and_keeps_the_best_epoch(rows: Batch, params: TrainParams) -> None:
    """The log-loss falls, and the kept weights have the lowest validation log-loss."""
    state = trained(rows, params)
    losses = [record.valid_log_loss for record in state.history]
    assert losses[-1] < 0.5 * losses[0]
    model = Classifier(3, 2, hidden_size=4)
    model.load_state_dict(state.best)
    assert log_loss(model, rows) == min(losses)


def test_training_resumes_to_the_same_bits(rows: Batch, params: TrainParams) -> None:
    """Eight epochs in one go and after a stop at three give the same history and weights."""
    whole = trained(rows, params)
    stopped = trained(rows, params.model_copy(update={"n_epochs": 3}))
    resumed = trained(rows, params, stopped)
    assert resumed.history == whole.history
    assert all(torch.equal(resumed.model[name], tensor) for name, tensor in whole.model.items())


def test_a_model_comes_back(tmp_path: Path) -> None:
    """A loaded model gives the answers of the saved one."""
    model = Classifier(3, 2, hidden_size=4).eval()
    save_model(model, tmp_path / "model.safetensors")
    features = torch.randn(6, 3)
    assert torch.equal(load_model(tmp_path / "model.safetensors")(features), model(features))


def test_the_form_names_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages and files of the form are in dvc.yaml, and metrics.yaml has one metric to select and one to report."""
    monkeypatch.chdir(ROOT)
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    assert {EXPERIMENT.train, EXPERIMENT.evaluate} <= stages.keys()
    assert EXPERIMENT.model_path in stages[EXPERIMENT.train]["outs"]
    metrics = load_metrics()
    assert with_role("select", metrics)[0].startswith("valid.")
    assert with_role("report", metrics)[0].startswith("test.")
