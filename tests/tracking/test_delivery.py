"""Delivering journals to a real store: each event exactly once, whatever interrupts it."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

from pipeline.core import processes
from pipeline.experiment import EXPERIMENT
from pipeline.tracking import delivery, mlflow_writer, runs
from pipeline.tracking.journal import Journal, journals
from tests.helpers import PROJECT, artifacts, environment, small_params, stored, wait_until, working_in

PARAMS = small_params()
# The client methods by which delivery changes a store.
WRITES = (
    "create_run",
    "log_batch",
    "set_tag",
    "log_inputs",
    "log_artifact",
    "set_terminated",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "log_outputs",
)


def train_and_evaluate() -> None:
    """Write the journals of one complete run."""
    with runs.training_run(PARAMS, "cpu") as run:
        for epoch in (1, 2):
            run.log_epoch({"epoch": epoch, "train_mse": 0.1 / epoch, "valid_mse": 0.2 / epoch}, epoch_seconds=1.5)
        run.log_training_outputs(PARAMS)
    runs.log_evaluation(PARAMS)


def content(store: str) -> list[dict[str, Any]]:
    """Return everything that a store shows of its runs, except ids, which differ between stores."""
    client = MlflowClient(store)
    return [describe(client, run) for run in stored(store)]


def describe(client: MlflowClient, run: Run) -> dict[str, Any]:
    run_id = run.info.run_id
    files = {path: Path(client.download_artifacts(run_id, path)).read_bytes() for path in artifacts(client, run_id)}
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    outputs = run.outputs.model_outputs if run.outputs else []
    inputs = run.inputs.dataset_inputs if run.inputs else []
    assert [model.model_id for model in models] == [output.model_id for output in outputs]
    return {
        "info": [run.info.run_name, run.info.status, run.info.start_time, run.info.end_time],
        "params": run.data.params,
        "tags": run.data.tags,
        "points": {
            name: [(p.step, p.timestamp, p.value) for p in client.get_metric_history(run_id, name)]
            for name in run.data.metrics
        },
        "inputs": sorted((entry.dataset.name, entry.dataset.digest) for entry in inputs),
        "models": [(str(model.status), model.name, model.params, metrics_of(model)) for model in models],
        "files": files,
    }


def metrics_of(model: LoggedModel) -> list[tuple[str, float, int, str | None, str | None]]:
    """Return what a model's page shows of its metrics, oldest first."""
    entries = sorted(model.metrics or [], key=lambda metric: (metric.timestamp, metric.key))
    return [(each.key, each.value, each.timestamp, each.dataset_name, each.dataset_digest) for each in entries]


@pytest.fixture
def undisturbed(results: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The store's content after an undisturbed delivery; afterwards the journals and the empty store are restored."""
    train_and_evaluate()
    shutil.copytree(results / ".mlflow-journal", tmp_path / "journals")
    empty = shutil.copy(tmp_path / "store.db", tmp_path / "empty.db")
    assert delivery.deliver_all(results) == []
    assert journals(results) == []
    expected = content(store)
    shutil.copytree(tmp_path / "journals", results / ".mlflow-journal", dirs_exist_ok=True)
    shutil.copy(empty, tmp_path / "store.db")
    shutil.rmtree(results / "mlartifacts")
    return expected


def test_run_has_the_times_of_its_events(results: Path, store: str) -> None:
    """Start, end and every metric have the journal's times, however late they are delivered."""
    train_and_evaluate()
    events = [event for journal in journals(results) for event in journal.events()]
    delivery.deliver_all(results)
    (row,) = content(store)
    end = next(event for event in events if event["kind"] == "end")
    assert row["info"][1:] == ["FINISHED", events[0]["time"], end["time"]]
    assert 0 <= time.time() - end["time"] / 1000 < 600
    epochs = [event for event in events if event.get("step") == 2 and not event.get("replay")]
    assert row["points"]["valid/mse"][-1] == (2, epochs[0]["time"], 0.1)
    ((status, name, params, metrics),) = row["models"]
    assert (status, name, params) == ("READY", "autoencoder", row["params"])
    assert [value for name, value, *_ in metrics if name == "test/mse"] == [0.04]


def test_delivery_interrupted_anywhere_gives_the_same_run(
    undisturbed: list[dict[str, Any]], results: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the store fails again and again, each time after one to five successful requests, everything is there once."""
    counts = {"left": 0, "deaths": 0}

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            counts["left"] -= 1
            if counts["left"] == 0:
                counts["deaths"] += 1
                raise ConnectionError("the store died")
            return result

        return call

    with monkeypatch.context() as patched:
        for name in WRITES:
            patched.setattr(MlflowClient, name, dying(getattr(MlflowClient, name)))
        for attempt in range(200):
            counts["left"] = 1 + attempt % 5
            if not delivery.deliver_all(results):
                break
    assert counts["deaths"] > 10
    assert content(store) == undisturbed


@pytest.mark.parametrize("first", ["a training", "an evaluation"])
def test_a_model_has_the_metrics_of_its_run_with_their_data(results: Path, store: str, first: str) -> None:
    """A run's numbers are on its model's page, once, with the data set that their name begins with."""
    Path("data/prepared").mkdir(parents=True)
    for name in ("train", "valid", "test"):
        Path(f"data/prepared/{name}.safetensors").write_text(name)
    Path("reports/train.json").write_text('{"valid": {"best_mse": 0.05}, "model": {"n_parameters": 7}}')
    if first == "a training":
        train_and_evaluate()
    else:
        runs.log_evaluation(PARAMS)
    assert delivery.deliver_all(results) == []
    (row,) = content(store)
    inputs = {name.partition("-")[2]: (name, digest) for name, digest in row["inputs"]}
    ((*_, metrics),) = row["models"]
    assert sorted((name, value, *data) for name, value, _, *data in metrics) == [
        ("model/n_parameters", 7, None, None),
        ("test/mse", 0.04, *inputs["test"]),
        ("valid/best_mse", 0.05, *inputs["valid"]),
    ]
    for name, value, time_ms, *_ in metrics:
        assert row["points"][name] == [(0, time_ms, value)]


def test_an_evaluation_by_a_clock_that_stands_is_delivered(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a clock stands still or runs backwards, the model and its run still show the newest value."""
    for time_ms, mse in ((5_000, 0.04), (5_000, 0.03), (4_000, 0.02)):
        monkeypatch.setattr("pipeline.tracking.journal.now_ms", lambda time_ms=time_ms: time_ms)
        Path("reports/evaluate.json").write_text(json.dumps({"test": {"mse": mse}}))
        runs.log_evaluation(PARAMS)
        assert delivery.deliver_all(results) == []
    (row,) = content(store)
    ((*_, metrics),) = row["models"]
    assert [value for name, value, *_ in metrics if name == "test/mse"] == [0.04, 0.03, 0.02]
    assert stored(store)[0].data.metrics["test/mse"] == 0.02


def test_a_deleted_model_does_not_block_its_runs_metrics(results: Path, store: str) -> None:
    """If somebody deleted the model in MLflow, the run still gets a new evaluation."""
    train_and_evaluate()
    assert delivery.deliver_all(results) == []
    client = MlflowClient(store)
    (row,) = stored(store)
    assert row.outputs is not None
    client.delete_logged_model(row.outputs.model_outputs[0].model_id)
    Path("reports/evaluate.json").write_text('{"test": {"mse": 0.03}}')
    runs.log_evaluation(PARAMS)
    assert delivery.deliver_all(results) == []
    assert stored(store)[0].data.metrics["test/mse"] == 0.03


def test_an_evaluation_does_not_overtake_its_training(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the training's journal is undelivered, its evaluation does not create a separate run."""
    train_and_evaluate()
    training, evaluation = journals(results)
    send = mlflow_writer._send_model

    def failing(*_: Any) -> None:
        raise OSError("no room for the model")

    monkeypatch.setattr(mlflow_writer, "_send_model", failing)
    assert [journal.id for journal in delivery.deliver_all(results)] == [training.id, evaluation.id]
    problem = evaluation.problem()
    assert problem is not None
    assert "the training that it belongs to could not be delivered" in problem[0]
    assert "test/mse" not in stored(store)[0].data.metrics
    monkeypatch.setattr(mlflow_writer, "_send_model", send)
    assert delivery.deliver_all(results) == []
    (row,) = stored(store)
    assert row.data.metrics["test/mse"] == 0.04


def test_an_evaluation_belongs_to_the_newest_finished_training(results: Path, store: str) -> None:
    """Of trainings with the same bytes only the newest finished one gets it: not an older one, nor a killed one."""

    def train_until(error: BaseException | None) -> None:
        with suppress(KeyboardInterrupt), runs.training_run(PARAMS, "cpu") as run:
            run.log_training_outputs(PARAMS)
            if error is not None:
                raise error

    for error in (None, None, KeyboardInterrupt()):
        train_until(error)
    runs.log_evaluation(PARAMS)
    assert delivery.deliver_all(results) == []
    assert [(run.info.status, "test/mse" in run.data.metrics) for run in stored(store)] == [
        ("KILLED", False),
        ("FINISHED", True),
        ("FINISHED", False),
    ]


def test_a_damaged_state_sends_nothing_twice(results: Path, store: str) -> None:
    """If the delivery state is lost, as on a full disk, the store still has every event only once."""
    with runs.training_run(PARAMS, "cpu") as run:
        run.log_epoch({"epoch": 1, "train_mse": 0.1}, epoch_seconds=1)
        (journal,) = delivery.deliver_all(results)
        (journal.folder / "state.json").write_text('{"run_id": "')
        run.log_epoch({"epoch": 2, "train_mse": 0.1}, epoch_seconds=1)
    assert delivery.deliver_all(results) == []
    (row,) = content(store)
    assert [step for step, *_ in row["points"]["train/mse"]] == [1, 2]


def test_successful_delivery_clears_the_problem(results: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successful delivery clears the problem, so that training does not warn about an outage that is over."""

    def away(*_: Any) -> None:
        raise OSError("the store is away")

    with runs.training_run(PARAMS, "cpu"):
        with monkeypatch.context() as outage:
            outage.setattr(delivery, "open_store", away)
            (journal,) = delivery.deliver_all(results)
        problem = journal.problem()
        assert problem is not None
        assert problem[0] == "OSError: the store is away"
        delivery.deliver_all(results)
        assert journal.problem() is None


def test_two_evaluations_of_the_same_training_make_one_run(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations of one training make one run, even if the first was interrupted and left it unfinished."""

    def failing(*_: Any) -> None:
        raise OSError("no room for files")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_artifact", failing)
        for _ in range(2):
            runs.log_evaluation(PARAMS)
            assert delivery.deliver_all(results)
    assert delivery.deliver_all(results) == []
    assert [row.info.status for row in stored(store)] == ["FINISHED"]


def test_an_evaluation_is_delivered_by_the_process_that_was_prepared_for_it(results: Path, store: str) -> None:
    """The process prepared for an evaluation delivers its journal."""
    prepared = delivery.prepare_delivery()
    assert prepared is not None
    runs.log_evaluation(PARAMS, prepared)  # `results` prevents it from starting or waiting for another process
    assert prepared.wait(60) == 0
    assert journals(results) == []
    assert [row.info.status for row in stored(store)] == ["FINISHED"]


def test_where_the_prepared_process_died_another_one_delivers(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the prepared process has died, another one delivers the evaluation."""
    started: list[Journal] = []
    monkeypatch.setattr(delivery, "start_delivery", started.append)
    prepared = delivery.prepare_delivery()
    assert prepared is not None
    prepared.kill()
    prepared.wait()
    runs.log_evaluation(PARAMS, prepared)
    assert [journal.id for journal in started] == [journal.id for journal in journals(results)]


def test_a_prepared_process_ends_with_its_stage(results: Path) -> None:
    """A prepared process ends when its stage ends before there is anything to deliver."""
    script = "import os; from pipeline.tracking import delivery; delivery.prepare_delivery(); os.abort()"
    subprocess.run([sys.executable, "-c", script], env=environment(PYTHONPATH=str(PROJECT)))
    assert working_in(results, "pipeline.tracking.delivery")
    wait_until(lambda: not working_in(results, "pipeline.tracking.delivery"))


def test_unloadable_weights_do_not_block_delivery(results: Path, store: str) -> None:
    """If the current code cannot load the weights, the run is complete except for the model, and a tag says why."""
    runs.log_evaluation(PARAMS)
    (journal,) = journals(results)
    event = next(event for event in journal.events() if event["kind"] == "model")
    (journal.folder / event["file"]).write_bytes(b"of another time")
    assert delivery.deliver_all(results) == []
    (row,) = stored(store)
    assert row.info.status == "FINISHED"
    assert row.outputs is None or row.outputs.model_outputs == []
    assert row.data.tags["model.problem"]


def test_files_have_longer_to_upload_than_an_answer_may_take(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads of a file and of a part of the model may take longer than MLFLOW_HTTP_REQUEST_TIMEOUT."""
    slow = [r"/params\.yaml$", r"/MLmodel$"]
    uploaded = []

    class Storage(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if any(re.search(pattern, self.path) for pattern in slow):
                time.sleep(1.5)
            uploaded.append(self.path.rpartition("/")[2])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Storage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    location = f"http://127.0.0.1:{server.server_address[1]}/api/2.0/mlflow-artifacts/artifacts"
    MlflowClient(store).create_experiment(EXPERIMENT.name, artifact_location=location)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    runs.log_evaluation(PARAMS)
    left = delivery.deliver_all(results)
    server.shutdown()
    server.server_close()
    assert [journal.problem() for journal in left] == []
    assert {"params.yaml", "MLmodel", "autoencoder.safetensors"} <= set(uploaded)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"  # other requests keep the user's limit


def test_failing_journal_does_not_block_the_others(results: Path, store: str) -> None:
    """A journal that fails keeps its problem as one line, and the others are delivered."""
    train_and_evaluate()
    bad, *_ = journals(results)
    with (bad.folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "song", "time": 1}) + "\n")
    runs.log_evaluation(small_params(evaluate__manifold_size=7))
    left = delivery.deliver_all(results)
    assert bad.id in {journal.id for journal in left}
    assert "was written by another version: it has events 'song'" in (bad.problem() or ("",))[0]
    assert "7" in {row.data.params["evaluate.manifold_size"] for row in stored(store)}


def test_only_journals_of_the_current_store_are_delivered(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was recorded for a tracking server is not delivered to another store."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MLFLOW_TRACKING_URI", "http://bob:hunter2@127.0.0.1:9/")
        train_and_evaluate()
    assert delivery.deliver_all(results) == []
    assert stored(store) == []
    assert {journal.first_event()["store"] for journal in journals(results)} == {"http://127.0.0.1:9"}
    assert not any(b"hunter2" in path.read_bytes() for path in results.rglob("*") if path.is_file())


def test_run_deleted_during_delivery_is_created_again(results: Path, store: str) -> None:
    """If a run is deleted while it is being written, it is created again with all its events."""
    with runs.training_run(PARAMS, "cpu") as run:
        run.log_epoch({"epoch": 1, "train_mse": 0.1}, epoch_seconds=1)
        delivery.deliver_all(results)
        MlflowClient(store).delete_run(stored(store)[0].info.run_id)
        run.log_epoch({"epoch": 2, "train_mse": 0.1}, epoch_seconds=1)
    delivery.deliver_all(results)
    (row,) = content(store)
    assert [step for step, *_ in row["points"]["train/mse"]] == [1, 2]
    assert row["params"]["model.bottleneck_size"] == "2"


def test_many_epochs_go_in_few_requests(results: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics that waited during an outage are sent in batches of MLflow's maximum size."""
    with runs.training_run(PARAMS, "cpu") as run:
        for epoch in range(1, 701):
            run.log_epoch({"epoch": epoch, "train_mse": 0.1, "valid_mse": 0.1}, epoch_seconds=1)
    sizes = []
    log_batch = MlflowClient.log_batch

    def counting(client: MlflowClient, run_id: str, metrics: Any = (), **more: Any) -> None:
        sizes.append(len(metrics))
        log_batch(client, run_id, metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    delivery.deliver_all(results)
    assert [size for size in sizes if size] == [1000, 1000, 800]
    assert len(content(store)[0]["points"]["train/mse"]) == 700


def train(epochs: list[int], continued: runs.Resumed | None = None, is_killed: bool = False) -> str:
    """Write the journal of a training process, complete or as a kill leaves it. Return the run's id in the journals."""
    with runs.training_run(PARAMS, "cpu", continued) as run:
        for epoch in epochs:
            run.log_epoch({"epoch": epoch, "train_mse": 0.1 / epoch, "valid_mse": 0.2 / epoch}, epoch_seconds=1.5)
        assert run.id is not None
        if is_killed:
            run.journal = None  # so that no end is written
            return run.id
        run.log_training_outputs(PARAMS)
    return run.id


def after(*epochs: int) -> list[dict[str, float]]:
    return [{"epoch": epoch, "train_mse": 0.1 / epoch, "valid_mse": 0.2 / epoch} for epoch in epochs]


def steps(store: str, run: Run) -> list[int]:
    return [point.step for point in MlflowClient(store).get_metric_history(run.info.run_id, "valid/mse")]


@pytest.mark.parametrize("is_delivered", [True, False])
def test_resumed_training_adds_to_its_run(results: Path, store: str, is_delivered: bool) -> None:
    """A resumed training adds to its run, delivered or not; an epoch after the checkpoint is there only once."""
    row = train([1, 2, 3], is_killed=True)
    if is_delivered:
        delivery.deliver_all(results)
        assert [run.info.status for run in stored(store)] == ["RUNNING"]  # this process still runs
    assert train([3, 4], runs.Resumed(row, after(1, 2))) == row
    assert delivery.deliver_all(results) == []
    (run,) = stored(store)
    assert run.info.status == "FINISHED"
    assert steps(store, run) == [1, 2, 3, 4]
    assert "fingerprint" in run.data.tags


def test_resumed_training_whose_run_was_deleted_gets_a_complete_one(results: Path, store: str) -> None:
    """If the run of a stopped training was deleted in MLflow, the new run also has the epochs before the kill."""
    row = train([1, 2], is_killed=True)
    delivery.deliver_all(results)
    MlflowClient(store).delete_run(stored(store)[0].info.run_id)
    train([3], runs.Resumed(row, after(1, 2)))
    delivery.deliver_all(results)
    (run,) = stored(store)
    assert (run.info.status, steps(store, run)) == ("FINISHED", [1, 2, 3])


def test_resumed_training_that_was_not_tracked_gets_a_complete_run(results: Path, store: str) -> None:
    """If tracking was off before the kill, the run of the resumed training has all epochs."""
    train([3], runs.Resumed(None, after(1, 2)))
    delivery.deliver_all(results)
    (run,) = stored(store)
    assert (run.info.status, steps(store, run)) == ("FINISHED", [1, 2, 3])


def test_resumed_run_is_not_closed_because_its_first_process_died(results: Path, store: str) -> None:
    """A resumed run changes from KILLED to RUNNING, and its first, dead process does not close it again."""
    row = train([1, 2], is_killed=True)
    for journal in journals(results):
        journal.close()
    delivery.deliver_all(results)
    (run,) = stored(store)
    assert run.info.status == "KILLED"
    MlflowClient(store).set_tag(run.info.run_id, "process.pid", "999999999")
    assert train([3], runs.Resumed(row, after(1, 2)), is_killed=True) == row
    delivery.deliver_all(results)
    (run,) = stored(store)
    assert (run.info.status, steps(store, run)) == ("RUNNING", [1, 2, 3])
    assert run.data.tags["process.pid"] == str(os.getpid())


def test_resumed_run_waits_for_its_first_part(results: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage, delivery of a resumed training's journal first delivers the journal of its first part."""
    row = train([1, 2], is_killed=True)
    train([3], runs.Resumed(row, after(1, 2)), is_killed=True)
    first, second = journals(results)
    n_attempts = 0
    open_store = delivery.open_store

    def away_at_first(*arguments: Any) -> Any:
        nonlocal n_attempts
        n_attempts += 1
        if n_attempts <= 2:
            raise OSError("the store is away")
        if n_attempts == 4:
            second.append({"kind": "end", "status": "FINISHED"})
        return open_store(*arguments)

    monkeypatch.setattr(delivery, "open_store", away_at_first)
    delivery.follow(second, results)
    assert not first.exists()
    assert not second.exists()
    (run,) = stored(store)
    assert (run.info.status, steps(store, run)) == ("FINISHED", [1, 2, 3])


@pytest.mark.parametrize("moment", ["search_runs", "get_run"])
def test_a_run_that_another_clone_delivers_ends_as_its_journal_says(
    results: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A run whose end another clone delivers just after this clone saw it RUNNING stays FINISHED."""
    other = tmp_path / "other"
    shutil.copytree(results, other)
    monkeypatch.chdir(other)
    with runs.training_run(PARAMS, "cpu") as run:
        run.log_epoch({"epoch": 1, "train_mse": 0.1}, epoch_seconds=1)
    (journal,) = journals(other)
    events = (journal.folder / "events.jsonl").read_text().replace(processes.identity()["process.boot"], "another")
    start, *_ = events.splitlines()
    (journal.folder / "events.jsonl").write_text(f"{start}\n")
    delivery.deliver(journal)
    (journal.folder / "events.jsonl").write_text(events)
    (there,) = stored(store)
    assert there.info.status == "RUNNING"

    look = getattr(MlflowClient, moment)

    def look_before_it_ends(client: MlflowClient, asked: Any, *condition: str, **more: Any) -> Any:
        found = look(client, asked, *condition, **more)
        sees_it = asked == there.info.run_id or condition == ("attributes.status = 'RUNNING'",)
        if sees_it and journal.exists():
            delivery.deliver(journal)
        return found

    monkeypatch.chdir(results)
    with runs.training_run(PARAMS, "cpu"):
        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, moment, look_before_it_ends)
            delivery.deliver(journals(results)[0])
        delivery.deliver_all(other)
        assert MlflowClient(store).get_run(there.info.run_id).info.status == "FINISHED"


def test_runs_whose_journal_is_lost_are_closed(results: Path, store: str) -> None:
    """The next run sets a RUNNING run of this host to KILLED if its process and journal are gone, and no other run."""
    client = MlflowClient(store)
    with runs.training_run(PARAMS, "cpu"):
        delivery.deliver_all(results)
        experiment = stored(store)[0].info.experiment_id
    me = processes.identity()
    gone = {**me, "process.boot": "another"}
    tags = {"lost": gone, "elsewhere": gone | {"process.host": "elsewhere"}, "alive": me, "unknown": {}}
    ids = {name: client.create_run(experiment, 1, tags=values).info.run_id for name, values in tags.items()}
    client.log_metric(ids["lost"], "valid/accuracy", 0.5, timestamp=76)
    client.log_metric(ids["lost"], "train/log_loss", 0.1, timestamp=77)
    # Its journal is here and undelivered; only the journal knows how the run ended.
    with Journal.create(results) as journal:
        journal.append(journals(results)[0].first_event() | {"owner": gone, "run": journal.id})
    ids["kept"] = client.create_run(experiment, 1, tags=gone | {"journal": journal.id}).info.run_id
    with runs.training_run(PARAMS, "cpu"):
        delivery.deliver(journals(results)[-1])
    status = {name: client.get_run(run_id).info.status for name, run_id in ids.items()}
    assert status.pop("lost") == "KILLED"
    assert set(status.values()) == {"RUNNING"}
    assert client.get_run(ids["lost"]).info.end_time == 77


def test_deleted_code_is_imported_from_the_main_repository(tmp_path: Path) -> None:
    """If DVC deletes a temporary folder during delivery, later imports come from the main repository."""
    for name in ("temporary", "main"):
        shutil.copytree(PROJECT / "pipeline", tmp_path / name / "pipeline")
    script = (
        "import shutil; from pathlib import Path; from pipeline.tracking import delivery\n"
        "delivery.find_code_in(Path('main').resolve()); import pipeline.autoencoder; shutil.rmtree('temporary')\n"
        "from pipeline.core import dvc_cli; from pipeline.tracking import sync\n"
        "from pipeline.autoencoder import model\n"
        "print(*sorted({Path(module.__file__).parents[2].name for module in (delivery, dvc_cli, sync, model)}))"
    )
    settings = environment(PYTHONPATH="temporary")
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, env=settings, capture_output=True, text=True
    )
    assert done.stdout == "main temporary\n", done.stderr
