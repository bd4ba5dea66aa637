"""MLflow runs in a real sqlite store, read back through MlflowClient."""

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline import train
from pipeline.autoencoder.model import load_model
from pipeline.core.errors import PipelineError
from pipeline.core.files import numbers
from pipeline.tracking import delivery, fingerprints, runs
from pipeline.tracking.journal import Journal, journals
from tests.helpers import FIGURES, artifacts, git, rows, run, set_params, small_params, stored

PARAMS = small_params()


@pytest.fixture(scope="module")
def row(project: Path) -> Run:
    """The MLflow run of the pipeline execution that the tests share."""
    return rows(project)[-1]


def test_run_has_parameters_metrics_and_status(project: Path, row: Run) -> None:
    """A run has all parameters, the metrics of training and test, FINISHED, and a distinctive name."""
    assert row.info.status == "FINISHED"
    assert row.info.run_name == "digits k=2 seed=0 n_layers=2 n_epochs=2 batch_size=64 manifold_size=5"
    assert row.data.params == {key: str(value) for key, value in PARAMS.flat().items()}
    for name in ("train/mse", "valid/mse", "valid/best_mse", "test/mse", "test/psnr_db", "test/pca_mse"):
        assert name in row.data.metrics
    assert row.data.metrics["test/digit_mse/7"] > 0
    assert row.data.metrics["time/images_per_second"] > 0


def test_metrics_equal_the_files(project: Path, row: Run) -> None:
    """Metrics equal history.csv, epoch by epoch, and every number of the JSON files."""
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    history = pd.read_csv(project / "reports/history.csv")
    for column, name in (("train_mse", "train/mse"), ("valid_mse", "valid/mse"), ("grad_norm", "train/grad_norm")):
        points = client.get_metric_history(row.info.run_id, name)
        assert [point.step for point in points] == list(history["epoch"])
        assert [point.value for point in points] == pytest.approx(list(history[column]), rel=1e-7)
    for file in ("train", "evaluate"):
        written = numbers(json.loads((project / f"reports/{file}.json").read_text()))
        assert {name: row.data.metrics[name] for name in written} == written


def test_artifacts(project: Path, row: Run) -> None:
    """The artifacts are parameters, weights, history, metrics, figures and the hashes of the stages' dependencies."""
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    found = artifacts(client, row.info.run_id)
    assert found == {
        "params.yaml",
        "models/autoencoder.safetensors",
        "models/explorer.html",
        "reports/history.csv",
        "reports/train.json",
        "reports/evaluate.json",
        "reports/dimensions.csv",
        *(f"reports/figures/{name}.png" for name in FIGURES),
        "inputs/train.json",
        "inputs/evaluate.json",
    }
    local = client.download_artifacts(row.info.run_id, "models/autoencoder.safetensors")
    assert Path(local).read_bytes() == (project / "models/autoencoder.safetensors").read_bytes()


def test_inputs_are_the_data_and_hashes_that_dvc_records(project: Path, row: Run) -> None:
    """Data sets have DVC's hashes, and inputs/<stage>.json has those of all files that a stage read."""
    lock = (project / "dvc.lock").read_text()
    assert row.inputs is not None
    contexts = {entry.tags[0].value: entry.dataset for entry in row.inputs.dataset_inputs}
    assert set(contexts) == {"train", "valid", "test"}
    assert contexts["train"].name == "digits-train"
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    hashes = mlflow.artifacts.load_dict(f"{row.info.artifact_uri}/inputs/evaluate.json")
    assert contexts["test"].digest == hashes["data/prepared/test.safetensors"]
    assert all(digest in lock for digest in [*hashes.values(), contexts["train"].digest])


def test_run_records_its_commit(project: Path, row: Run) -> None:
    """A run has the commit of its code, and is not dirty because of changed parameters and outputs."""
    assert row.data.tags["mlflow.source.git.commit"] == git(project, "rev-parse", "HEAD").strip()
    assert row.data.tags["mlflow.source.git.dirty"] == "false"


def test_the_model_in_mlflows_format(project: Path, row: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model in MLflow's format gives the network's outputs, needs no pickle, and can be registered."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(f"sqlite:///{project}/mlflow.db")
    assert row.outputs is not None
    model_id = row.outputs.model_outputs[0].model_id
    loaded = mlflow.pyfunc.load_model(f"models:/{model_id}")
    pixels = torch.rand(7, 784)
    network = load_model(project / "models/autoencoder.safetensors")
    with torch.no_grad():
        codes, images = network.encode(pixels), network(pixels)
    np.testing.assert_array_equal(loaded.predict(pixels.numpy(), params={"task": "encode"}), codes.numpy())
    np.testing.assert_array_equal(loaded.predict(codes.numpy(), params={"task": "decode"}), images.numpy())
    np.testing.assert_array_equal(loaded.predict(pixels.numpy()), images.numpy())
    assert mlflow.register_model(f"models:/{model_id}", "autoencoder").version == 1


def test_training_again_to_the_same_bytes_gives_a_complete_run(toy: Path, tmp_path: Path) -> None:
    """If training gives the same bytes, DVC skips evaluate; the new run still has test metrics and files."""
    here = shutil.copytree(toy, tmp_path / "again", symlinks=True)
    before = rows(here)
    with (here / "pipeline/polynomial.py").open("a") as file:
        file.write("# a comment changes no byte of the model\n")
    done = run(here, "dvc", "repro")
    assert "Stage 'evaluate' didn't change, skipping" in done.stdout
    after = rows(here)
    assert len(after) == len(before) + 1
    new, old = after[0], before[0]
    ours = {name: value for name, value in new.data.metrics.items() if not name.startswith("time/")}
    theirs = {name: value for name, value in old.data.metrics.items() if not name.startswith("time/")}
    assert ours == theirs
    assert new.data.tags["mlflow.source.git.dirty"] == "true"
    client = MlflowClient(f"sqlite:///{here}/mlflow.db")
    assert artifacts(client, new.info.run_id) == artifacts(client, old.info.run_id) | {"inputs/code.diff"}
    diff = Path(client.download_artifacts(new.info.run_id, "inputs/code.diff")).read_text()
    assert "+# a comment changes no byte of the model" in diff


@pytest.mark.slow
def test_run_is_completed_even_if_dvc_knows_the_result(toy: Path, tmp_path: Path) -> None:
    """If training gives bytes that were evaluated before, evaluate still runs instead of coming from DVC's cache."""
    here = shutil.copytree(toy, tmp_path / "known", symlinks=True)
    set_params(here, train__seed=1)
    run(here, "dvc", "repro")
    set_params(here, train__seed=0)
    with (here / "pipeline/polynomial.py").open("a") as file:
        file.write("# another comment that changes no byte\n")
    run(here, "dvc", "repro")
    assert len(rows(here)) == 3
    assert all("test/mse" in row.data.metrics for row in rows(here))


# From here on without DVC: a folder with the outputs. Tests call delivery explicitly.


def test_evaluation_without_a_run_creates_one_from_the_files(results: Path, store: str) -> None:
    """A new store gets a run from params, history and metrics, with its model; a second evaluation adds nothing."""
    runs.log_evaluation(PARAMS)
    assert delivery.deliver_all(results) == []
    (replayed,) = stored(store)
    assert replayed.info.status == "FINISHED"
    assert replayed.data.tags["replayed"] == "true"
    assert replayed.data.metrics["test/mse"] == 0.04
    assert replayed.outputs is not None
    points = MlflowClient(store).get_metric_history(replayed.info.run_id, "valid/mse")
    assert [(point.step, point.value) for point in points] == [(1, 0.06), (2, 0.05)]

    runs.log_evaluation(PARAMS)
    assert delivery.deliver_all(results) == []
    (again,) = stored(store)
    assert len(MlflowClient(store).get_metric_history(again.info.run_id, "test/mse")) == 1
    assert not journals(results)


def test_evaluation_joins_the_run_of_its_training(results: Path, store: str) -> None:
    """An evaluation of earlier parameters and weights finds their run; other parameters get a separate run."""
    with runs.training_run(PARAMS, "cpu") as first:
        first.log_training_outputs(PARAMS)
    runs.log_evaluation(PARAMS)
    other = small_params(evaluate__manifold_size=7)
    runs.log_evaluation(other)
    runs.log_evaluation(PARAMS)
    assert delivery.deliver_all(results) == []
    found = stored(store)
    assert len(found) == 2
    assert {row.data.params["evaluate.manifold_size"] for row in found} == {"5", "7"}
    assert all(row.data.metrics["test/mse"] == 0.04 for row in found)
    assert ["replayed" in row.data.tags for row in found] == [True, False]


def test_evaluating_the_same_weights_with_other_code_updates_their_run(results: Path, store: str) -> None:
    """Equal parameters and weights are one run, which has the newest evaluation."""
    runs.log_evaluation(PARAMS)
    delivery.deliver_all(results)
    Path("reports/evaluate.json").write_text('{"test": {"mse": 0.03}}')
    Path("reports/figures/latent.png").write_bytes(b"redrawn")
    runs.log_evaluation(PARAMS)
    delivery.deliver_all(results)
    (row,) = stored(store)
    client = MlflowClient(store)
    assert [point.value for point in client.get_metric_history(row.info.run_id, "test/mse")] == [0.04, 0.03]
    figure = client.download_artifacts(row.info.run_id, "reports/figures/latent.png")
    assert Path(figure).read_bytes() == b"redrawn"
    # Only figures change: no metric gets a second value.
    Path("reports/figures/latent.png").write_bytes(b"redrawn again")
    runs.log_evaluation(PARAMS)
    delivery.deliver_all(results)
    assert [point.value for point in client.get_metric_history(row.info.run_id, "test/mse")] == [0.04, 0.03]


@pytest.mark.parametrize(
    ("error", "status"),
    [(PipelineError("bad"), "FAILED"), (ValueError("bug"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
)
def test_error_or_ctrl_c_sets_the_status_of_the_run(
    results: Path, store: str, error: BaseException, status: str
) -> None:
    """An error leaves a FAILED run, Ctrl-C a KILLED one, and both propagate."""

    def fail() -> None:
        with runs.training_run(PARAMS, "cpu"):
            delivery.deliver_all(results)
            assert stored(store)[0].info.status == "RUNNING"
            raise error

    with pytest.raises(type(error)):
        fail()
    delivery.deliver_all(results)
    assert stored(store)[0].info.status == status


def test_a_journal_that_cannot_be_written_costs_a_warning(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training continues with one warning, the incomplete run ends as FAILED, and evaluation creates another run."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with runs.training_run(PARAMS, "cpu") as run_:
        with monkeypatch.context() as broken:
            broken.setattr(Journal, "append", full)
            run_.log_epoch({"epoch": 1, "train_mse": 0.1}, epoch_seconds=1)
        run_.log_epoch({"epoch": 2, "train_mse": 0.1}, epoch_seconds=1)
        run_.log_training_outputs(PARAMS)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "warning: this run is incomplete in MLflow: OSError: [Errno 28] No space left on device"
    runs.log_evaluation(PARAMS)
    assert delivery.deliver_all(results) == []
    assert [row.info.status for row in stored(store)] == ["FINISHED", "FAILED"]


def test_an_evaluation_that_cannot_be_written_down_leaves_nothing(
    results: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A history that cannot be read gives a warning, and no partial journal is left."""
    train.HISTORY_PATH.write_text("nonsense\n1\n")
    runs.log_evaluation(PARAMS)
    assert "warning: this evaluation is not in MLflow" in capsys.readouterr().err
    assert list((results / ".mlflow-journal").iterdir()) == []


def test_tracking_can_be_switched_off(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With PIPELINE_TRACKING=0 nothing is written and no process is started."""
    monkeypatch.setenv("PIPELINE_TRACKING", "0")
    with runs.training_run(PARAMS, "cpu") as run_:
        run_.log_epoch({"epoch": 1, "train_mse": 0.1}, epoch_seconds=1)
        run_.log_training_outputs(PARAMS)
    assert delivery.prepare_delivery() is None
    runs.log_evaluation(PARAMS)
    assert not (results / ".mlflow-journal").exists()


def test_run_records_its_environment(results: Path, store: str) -> None:
    """A run records torch, device, precision, hardware and threads; a run created from files does not have them."""
    with runs.training_run(PARAMS, "cpu") as run_:
        run_.log_training_outputs(PARAMS)
    runs.log_evaluation(small_params(evaluate__manifold_size=7))
    delivery.deliver_all(results)
    replayed, trained = stored(store)
    assert trained.data.tags["env.torch"] == torch.__version__.partition("+")[0]
    assert trained.data.tags["env.threads"] == str(torch.get_num_threads())
    assert trained.data.tags["env.device"] == "cpu"
    assert trained.data.tags["env.precision"] == "float32"
    assert trained.data.tags["env.hardware"]
    assert not any(name.startswith("env.") for name in replayed.data.tags)


def commit(folder: Path) -> None:
    """Commit all files of a folder to its git repository."""
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "committed")


def test_a_run_is_named_after_what_differs_from_the_commit(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name has bottleneck size and seed, what a sweep varies, then all parameters that differ from the commit."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(results.parent))
    changed = small_params(train__n_epochs=3, train__seed=1, model__hidden_sizes=[64, 32], model__n_layers=None)
    assert fingerprints.run_name(changed) == "digits k=2 seed=1"  # without git nothing is known to differ
    commit(results)
    assert fingerprints.run_name(PARAMS) == "digits k=2 seed=0"
    assert fingerprints.run_name(changed) == "digits k=2 seed=1 n_layers=None hidden_sizes=[64, 32] n_epochs=3"
    varied = ["model.bottleneck_size", "train.lr", "train.n_epochs"]
    name = fingerprints.run_name(small_params(train__n_epochs=3), varied)
    assert name == "digits k=2 seed=0 lr=0.005 n_epochs=3"
    runs.log_evaluation(small_params(train__n_epochs=3))
    monkeypatch.setenv("MLFLOW_RUN_NAME", "mine")
    runs.log_evaluation(small_params(train__n_epochs=4))
    delivery.deliver_all(results)
    assert {run.info.run_name for run in stored(store)} == {"digits k=2 seed=0 n_epochs=3", "mine"}


def test_a_runs_name_is_short(results: Path) -> None:
    """A run's name has at most 100 characters, however many parameters differ."""
    commit(results)
    name = fingerprints.run_name(small_params(model__n_layers=None, model__hidden_sizes=list(range(100, 200))))
    assert name.startswith("digits k=2 seed=0 n_layers=None hidden_sizes=[100, 101, ")
    assert name.endswith("…")
    assert len(name) == 100


@pytest.mark.parametrize("content", ["", "<<<<<<< HEAD\n", "train\n", "- 1\n", "train: 3\n", "train: {seed: 0}\n"])
def test_committed_parameters_that_cannot_be_compared_leave_the_usual_name(results: Path, content: str) -> None:
    """If the committed params.yaml is empty, damaged or lacks a parameter, the name is the usual one."""
    Path("params.yaml").write_text(content)
    commit(results)
    assert fingerprints.run_name(PARAMS) == "digits k=2 seed=0"


def test_code_tags_follow_the_dependencies_of_the_stages(results: Path, store: str) -> None:
    """Code of training changes `code`, code of other stages only `evaluation.code`, and tracking code neither."""
    tags = []
    for module in ("autoencoder/trainer.py", "tracking/sync.py", "autoencoder/figures.py", "autoencoder/trainer.py"):
        path = Path("pipeline", module)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("# edited\n")
        with runs.training_run(PARAMS, "cpu") as run_:
            run_.log_training_outputs(PARAMS)
        runs.log_evaluation(PARAMS)
        delivery.deliver_all(results)
        tags.append(tuple(stored(store)[0].data.tags[name] for name in ("code", "evaluation.code")))
    training, evaluation = zip(*tags, strict=True)
    assert training[0] == training[1] == training[2] != training[3]
    assert evaluation[0] == evaluation[1] != evaluation[2] == evaluation[3]
    assert tags[3] == (fingerprints.training_code(), fingerprints.evaluation_code())


def test_a_number_with_the_name_of_a_metric_by_epoch_is_an_error(
    results: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number with the name of a metric by epoch is reported, and nothing of the evaluation gets to MLflow."""
    Path("reports/evaluate.json").write_text('{"valid": {"mse": 0.5}}')
    runs.log_evaluation(PARAMS)
    assert "reports/evaluate.json and reports/history.csv both have valid/mse" in capsys.readouterr().err
    delivery.deliver_all(results)
    assert stored(store) == []
