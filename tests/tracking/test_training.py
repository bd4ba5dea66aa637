"""Resuming a training: its packed state, and the hash that identifies it."""

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.autoencoder.model import Architecture, AutoEncoder
from pipeline.autoencoder.trainer import STATE_TYPES, TrainingState, fit
from pipeline.core import checkpoint
from pipeline.core.errors import PipelineError
from pipeline.params import Params
from pipeline.tracking import training
from pipeline.tracking.fingerprints import training_hash
from tests.helpers import PROJECT, Calls, random_split, small_params, write_results

TRAIN = torch.from_numpy(random_split(130, seed=1).pixels())
VALID = torch.from_numpy(random_split(40, seed=2).pixels())


@pytest.fixture(scope="module")
def state() -> TrainingState:
    """The last state of a training whose best epoch was not its last."""
    states: list[TrainingState] = []
    params = small_params(train__n_epochs=12, train__lr=0.5, train__schedule="constant")
    torch.manual_seed(0)
    model = AutoEncoder(Architecture.from_params(params.model))
    fit(model, TRAIN, VALID, params.train, [Calls(on_epoch=lambda _record, _seconds, state: states.append(state))])
    assert states[-1].result.best_epoch < len(states)
    return states[-1]


def flat(value: Any) -> list[Any]:
    """Return all numbers and tensors of a state in a form that can be compared."""
    if isinstance(value, torch.Tensor):
        return [(value.dtype, value.cpu().numpy().tobytes())]
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return [item for key in sorted(value) for item in [key, *flat(value[key])]]
    if isinstance(value, list):
        return [item for element in value for item in flat(element)]
    return [value]


def test_state_is_restored_exactly(state: TrainingState) -> None:
    """A state is restored exactly: weights, best weights, Adam's moments and steps, and the history."""
    epochs = [dataclasses.asdict(record) for record in state.result.history]
    back, epochs_back = training.unpack(training.pack(state, epochs), STATE_TYPES)
    assert type(back) is TrainingState
    assert flat(back) == flat(state)
    assert epochs_back == epochs


def test_no_other_class_is_loaded(state: TrainingState) -> None:
    """A state with a class that is not listed is refused."""
    with pytest.raises(pickle.UnpicklingError, match="TrainingState"):
        training.unpack(training.pack(state, []), ())


@dataclasses.dataclass
class Record:
    """A line of a history whose number may be numpy's."""

    epoch: int
    train_mse: object
    valid_mse: float = 0.5


@pytest.mark.parametrize(
    ("state", "loss", "said"),
    [
        ({"weights": torch.zeros(2)}, np.float64(0.5), "because it holds a numpy"),
        (Record(1, 0.5), 0.5, r"because it holds a tests\.tracking\.test_training\.Record"),
        ({"function": lambda: None}, 0.5, "lambda"),
    ],
)
def test_a_state_that_could_not_be_loaded_is_an_error_at_once(
    repository: Path, monkeypatch: pytest.MonkeyPatch, state: object, loss: object, said: str
) -> None:
    """After the first epoch, not after a kill; the message says what to change."""
    monkeypatch.setenv("PIPELINE_TRACKING", "0")
    message = rf"the training could not resume from its state, .*{said}.*`state_types`"
    with (
        pytest.raises(PipelineError, match=message),
        training.training(small_params(), "cpu", n_epochs=2, n_examples=1) as run,
    ):
        run.on_epoch(Record(1, loss), 0.1, state)


def test_a_checkpoint_that_cannot_be_loaded_is_not_used(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training starts from scratch and reports it."""
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setenv("PIPELINE_TRACKING", "0")
    params = small_params()
    for types, expected in (((Record,), None), ((), None)):
        with (
            suppress(ZeroDivisionError),
            training.training(params, "cpu", n_epochs=2, n_examples=1, state_types=types) as run,
        ):
            assert run.state is expected
            if types:
                run.on_epoch(Record(1, 0.5), 0.1, Record(1, 0.5))
            raise ZeroDivisionError
    assert "warning: the checkpoint is not used, because it holds a tests.tracking" in capsys.readouterr().err


def test_stopped_training_resumes_and_finished_one_does_not(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training stopped by an error resumes, also with other parameters of evaluate; a finished one does not."""
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setenv("PIPELINE_TRACKING", "0")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    params = small_params()
    assert n_epochs_before(params, stopped_by=Calls(on_epoch=lambda *_: 1 / 0)) == 0
    assert n_epochs_before(small_params(evaluate__manifold_size=6), stopped_by=Calls(on_batch=lambda _: 1 / 0)) == 1
    assert "resuming after epoch 1 of 2 of a training that was stopped" in capsys.readouterr().out
    assert n_epochs_before(params) == 1
    assert n_epochs_before(params) == 0


def n_epochs_before(params: Params, stopped_by: Calls | None = None) -> int:
    """Train. Return the epoch after which the training resumed."""
    model = AutoEncoder(Architecture.from_params(params.model))
    with (
        suppress(ZeroDivisionError),
        training.training(params, "cpu", n_epochs=2, n_examples=130, state_types=STATE_TYPES) as run,
    ):
        callbacks = [run, stopped_by] if stopped_by else [run]
        fit(model, TRAIN, VALID, params.train, callbacks, run.state)
    return len(run.state.result.history) if run.state else 0


@pytest.fixture
def repository(tmp_dir: Path) -> Path:
    """A folder with all files that train reads."""
    write_results(tmp_dir, small_params())
    (tmp_dir / "data/prepared").mkdir(parents=True)
    for name in ("train", "valid"):
        (tmp_dir / f"data/prepared/{name}.safetensors").write_bytes(b"data")
    shutil.copytree(PROJECT / "pipeline", tmp_dir / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_dir


@pytest.mark.parametrize(
    "changes", [{"train__lr": 0.002}, {"train__n_epochs": 3}, {"model__bottleneck_size": 3}, {"train__threads": 1}]
)
def test_other_parameters_are_another_training(repository: Path, changes: dict[str, Any]) -> None:
    """Other parameters of training give another hash, so another training's checkpoint is never found."""
    assert training_hash(small_params(), "cpu") != training_hash(small_params(**changes), "cpu")


def test_files_that_training_does_not_read_do_not_change_its_hash(repository: Path) -> None:
    """Parameters and code of evaluate do not change the hash, so the training resumes."""
    before = training_hash(small_params(), "cpu")
    (repository / "pipeline/autoencoder/figures.py").write_text("")
    assert training_hash(small_params(evaluate__manifold_size=6), "cpu") == before


@pytest.mark.parametrize(
    "path", ["data/prepared/train.safetensors", "data/prepared/valid.safetensors", "pipeline/autoencoder/model.py"]
)
def test_other_data_and_other_code_are_another_training(repository: Path, path: str) -> None:
    """One changed byte of data or code changes the hash."""
    before = training_hash(small_params(), "cpu")
    with (repository / path).open("a") as file:
        file.write("#")
    assert training_hash(small_params(), "cpu") != before


def test_another_environment_is_another_training(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other CPU kernels or another number of threads change the hash, because they can change the bytes."""
    script = (
        "import torch\nfrom pipeline.params import load_params\n"
        "from pipeline.tracking.fingerprints import training_hash\n"
        "for threads in (1, 2):\n"
        "    torch.set_num_threads(threads)\n"
        "    print(training_hash(load_params(), 'cpu'))\n"
    )

    def hashes(capability: str) -> list[str]:
        environment = os.environ | {"PYTHONPATH": str(PROJECT), "ATEN_CPU_CAPABILITY": capability}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    one, two = hashes("default")
    assert hashes("default") == [one, two]
    assert one != two
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        assert hashes(torch.backends.cpu.get_cpu_capability().lower())[0] != one
