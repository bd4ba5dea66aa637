"""Bring journals to MLflow, each event once and as of the time at which it happened.

    python -m pipeline.delivery [FOLDER]    (started by a training or an evaluation for its journal)

Without a folder it waits for its name on stdin.

It runs beside the stage in a process of its own: a store that is slow, hangs or dies costs the stage
nothing, and a stage that is killed still gets its row closed. What could not be delivered stays in the
journal; the next run on this machine delivers it, or `make sync`.

Every step may be repeated: a run is found by its journal's name before it is made, MLflow takes a metric
of the same time and value once, tags, parameters and artifacts replace themselves.
"""

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pipeline
from pipeline import processes
from pipeline.errors import PipelineError
from pipeline.journal import Event, Journal, journals, one_line, runs_waited_for
from pipeline.store import open_store, store_name, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models import Model

JOURNAL_TAG = "journal"
# The repository that the journal lies in.
REPOSITORY_TAG = "journal.repository"
FINGERPRINT_TAG = "fingerprint"
EVALUATION_TAG = "evaluation"
POLL_SECONDS = 0.1
# A training that takes less has no time to spare for them.
SECONDS_BEFORE_IMPORTS = 30.0
LONGEST_PAUSE_SECONDS = 30.0
UPLOAD_SECONDS = 60
# MLflow's own limit for one request.
METRICS_IN_A_BATCH = 1000


def main() -> None:
    os.nice(10)  # the stage has the processors first
    folder = sys.argv[1] if len(sys.argv) > 1 else _wait_for_a_journal()
    if not folder:
        return
    journal = Journal(Path(folder))
    root = journal.folder.parents[1]
    os.chdir(root)
    # The code is that of the stage; its folder may go away, if it is one of DVC's temporary ones.
    pipeline.__path__.append(str(root / "pipeline"))
    follow(journal, root)


def _wait_for_a_journal() -> str:
    """The folder that stdin names; empty where the stage ends without naming one."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  (what takes seconds, while there is nothing to deliver)

    folder = os.fsdecode(sys.stdin.buffer.read())
    if folder:
        log = os.open(Path(folder, "delivery.log"), os.O_WRONLY | os.O_CREAT, 0o666)
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
    return folder


def follow(journal: Journal, root: Path) -> None:
    """Deliver a journal while it is being written, after those that were left before it.

    Returns once it is delivered to its end, or when its run has ended and the store fails; while the run
    goes on it is tried again, after pauses that grow.
    """
    # An evaluation, or a training that goes on, adds to a row that an outage may have kept back.
    backlog = [older for older in journals(root, store_name(tracking_uri(root), root)) if older.id < journal.id]
    owner = journal.events()[0]["owner"]
    started = time.monotonic()
    seen, ended, pending, pause, next_try = 0, False, False, 1.0, 0.0
    while journal.exists():
        if not ended and processes.is_gone(owner):
            journal.settle()
        if journal.size() != seen:
            seen, ended, pending = journal.size(), journal.has_ended(), True
        if pending and (ended or time.monotonic() >= next_try):
            try:
                for older in backlog:
                    _try_to_catch_up(older)
                backlog = [older for older in backlog if older.exists()]
                deliver(journal)
                backlog = []
                pending, pause = False, 1.0
            except Exception as error:
                journal.note_problem(error)
                if ended:
                    return
                next_try = time.monotonic() + pause
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        if not pending and time.monotonic() - started > SECONDS_BEFORE_IMPORTS:
            _import_for_the_model()
        time.sleep(POLL_SECONDS)


def _import_for_the_model() -> None:
    """Imports that take seconds, while the training goes on."""
    import mlflow.pytorch  # noqa: F401

    import pipeline.model  # noqa: F401


def deliver_all(root: Path) -> list[Journal]:
    """Deliver every journal that is for the present store; those that could not be, their problem noted."""
    waiting = journals(root, store_name(tracking_uri(root), root))
    for journal in waiting:
        _try_to_catch_up(journal)
    return [journal for journal in waiting if journal.exists()]


def _try_to_catch_up(journal: Journal) -> None:
    """Deliver a journal that an earlier process left, or note in it why that fails."""
    try:
        journal.settle()
        deliver(journal)
    except Exception as error:
        if journal.exists():  # else another process has just delivered it
            journal.note_problem(error)


def deliver(journal: Journal) -> None:
    """Send what the store lacks of a journal; delete the journal if that was its end.

    Raises:
        PipelineError: the store cannot be opened.
        Exception: whatever the store raises; what was sent until then is noted and not sent again.
    """
    with journal.lock:
        if not journal.exists():
            journal.remove_lock()
            return
        events, state = journal.events(), journal.state()
        start = events[0]
        _insist_that_what_it_adds_to_is_delivered(journal, start)
        with journal.asking():
            client, experiment_id = open_store(start["experiment"])
            run, created = _find_or_create(client, experiment_id, journal, start)
        run_id = run.info.run_id
        # A run that somebody deleted meanwhile is made anew, from the first event on.
        position = state["delivered"] if run_id == state["run_id"] else 0
        journal.set_state(run_id=run_id, delivered=position)
        if not created and run.data.tags.get(EVALUATION_TAG) == start["evaluation"]:
            position = len(events)  # the run has all of it
        while position < len(events):
            batch = _batch(events[position:])
            if created or not (batch[0]["kind"] == "start" or batch[0].get("replay")):
                _send(client, journal, run_id, batch)
            position += len(batch)
            journal.set_state(delivered=position)
        journal.clear_problem()
        if any(event["kind"] == "end" for event in events):
            journal.remove()


def _insist_that_what_it_adds_to_is_delivered(journal: Journal, start: Event) -> None:
    """Whatever overtook the first part of its training, or another evaluation of it, would make a second run."""
    fingerprint = start.get("fingerprint")
    for older in journals(journal.folder.parents[1], start["store"]):
        with suppress(FileNotFoundError):  # delivered a moment ago
            same_training = fingerprint is not None and older.fingerprint() == fingerprint
            if older.id < journal.id and (same_training or older.run() == journal.run()):
                raise PipelineError(f"the training that it belongs to could not be delivered ({older.id})")


def _find_or_create(client: "MlflowClient", experiment_id: str, journal: Journal, start: Event) -> "tuple[Run, bool]":
    """The run that a journal is of, and whether it was made for a training.

    An evaluation's is that of its training; only where the store has none it is made anew.
    """
    name = journal.run()
    made_before = _newest(client, experiment_id, f"tags.{JOURNAL_TAG} = '{name}'")
    if made_before is not None:
        return made_before, True
    trained = find_training(client, experiment_id, start["fingerprint"]) if "fingerprint" in start else None
    if trained is not None:
        return trained, False
    tags = start["tags"] | {JOURNAL_TAG: name, REPOSITORY_TAG: str(journal.folder.parents[1])}
    return client.create_run(experiment_id, start["time"], tags, start["name"]), True


def find_training(client: "MlflowClient", experiment_id: str, fingerprint: str) -> "Run | None":
    """The newest finished run that wrote what the fingerprint is a hash of."""
    wanted = f"tags.{FINGERPRINT_TAG} = '{fingerprint}' AND attributes.status = 'FINISHED'"
    return _newest(client, experiment_id, wanted)


def _newest(client: "MlflowClient", experiment_id: str, condition: str) -> "Run | None":
    found = client.search_runs([experiment_id], condition, max_results=1, order_by=["start_time DESC"])
    return found[0] if found else None


def _batch(events: list[Event]) -> list[Event]:
    """The events at the beginning that go in one request: metrics together, others alone."""
    batch, n_metrics = [events[0]], len(events[0].get("values", ()))
    for event in events[1:]:
        n_metrics += len(event.get("values", ()))
        alike = event["kind"] == batch[0]["kind"] == "metrics" and event.get("replay") == batch[0].get("replay")
        if not alike or n_metrics > METRICS_IN_A_BATCH:
            break
        batch.append(event)
    return batch


def _send(client: "MlflowClient", journal: Journal, run_id: str, batch: list[Event]) -> None:
    event = batch[0]
    if event["kind"] == "model":
        _send_model(client, journal, run_id, event)
        return
    with journal.asking():
        match event["kind"]:
            case "start":
                _send_start(client, journal, run_id, event)
            case "metrics":
                new = [event for event in batch if event.get("step", math.inf) > journal.state()["last_step"]]
                _send_metrics(client, run_id, new)
            case "tags":
                for name, value in event["values"].items():
                    client.set_tag(run_id, name, value)
            case "inputs":
                _send_inputs(client, run_id, event)
            case "artifact":
                with _time_to_upload():
                    client.log_artifact(run_id, str(journal.folder / event["file"]), event["folder"] or None)
            case "end":
                client.set_terminated(run_id, event["status"], event["time"])
            case unknown:
                raise PipelineError(f"{journal.folder} was written by another version: it has events {unknown!r}")


def _send_start(client: "MlflowClient", journal: Journal, run_id: str, event: Event) -> None:
    from mlflow.entities import Param, RunTag

    params = [Param(name, value) for name, value in event["params"].items()]
    if journal.run() == journal.id:
        client.log_batch(run_id, params=params)
    else:
        # The row of a training that was stopped goes on. It may have epochs after the last checkpoint.
        tags = [RunTag(name, value) for name, value in event["tags"].items()]
        client.log_batch(run_id, params=params, tags=tags)
        client.update_run(run_id, "RUNNING")
        journal.set_state(last_step=_last_step(client, run_id, journal))
    close_runs_of_dead_processes(client, client.get_run(run_id), journal.folder.parents[1])


def _last_step(client: "MlflowClient", run_id: str, journal: Journal) -> int:
    """The last epoch of which the run has the metrics; 0 where it has none."""
    epochs = (event["values"] for event in journal.events() if "step" in event)
    name = next((name for values in epochs for name in values), None)
    points = client.get_metric_history(run_id, name) if name is not None else []
    return max((point.step for point in points), default=0)


def close_runs_of_dead_processes(client: "MlflowClient", newest: "Run", root: Path) -> None:
    """Set every other RUNNING run of this host to KILLED, at its last metric, if its process and its journal are gone.

    A journal that exists, in the repository `root` or in the run's own, will tell by itself how the run ended.
    """
    for run in client.search_runs([newest.info.experiment_id], "attributes.status = 'RUNNING'"):
        run_id, tags = run.info.run_id, run.data.tags
        if run_id == newest.info.run_id or not processes.is_gone(tags):
            continue
        repositories = {root, Path(tags.get(REPOSITORY_TAG, root))}
        if any(tags.get(JOURNAL_TAG) in runs_waited_for(repository) for repository in repositories):
            continue
        # Only now: a journal goes after it has delivered the end, so nobody can write another end from here on.
        if client.get_run(run_id).info.status == "RUNNING":
            points = (point for name in run.data.metrics for point in client.get_metric_history(run_id, name))
            last_heard = max((point.timestamp for point in points), default=run.info.start_time)
            client.set_terminated(run_id, "KILLED", last_heard)


def _send_metrics(client: "MlflowClient", run_id: str, batch: list[Event]) -> None:
    """Metrics that have a step by nature go as they are; others only if their value is a new one."""
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics if any("step" not in event for event in batch) else {}
    metrics = [
        Metric(name, value, event["time"], event.get("step", 0))
        for event in batch
        for name, value in event["values"].items()
        if "step" in event or known.get(name) != value
    ]
    for first in range(0, len(metrics), METRICS_IN_A_BATCH):
        client.log_batch(run_id, metrics[first : first + METRICS_IN_A_BATCH])


def _send_inputs(client: "MlflowClient", run_id: str, event: Event) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    client.log_inputs(
        run_id,
        [
            DatasetInput(
                Dataset(item["name"], item["digest"], "local", json.dumps({"uri": item["path"]})),
                [InputTag("mlflow.data.context", item["context"])],
            )
            for item in event["data_sets"]
        ],
    )


def _send_model(client: "MlflowClient", journal: Journal, run_id: str, event: Event) -> None:
    """The model in MLflow's own format, exported rather than pickled, for load_model and the registry.

    Weights that the present code cannot load (it was changed before they could be delivered) are left
    out, with a tag that says so: nothing would ever bring them through.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model"
        description = Model(run_id=run_id)
        try:
            _export(journal.folder / event["file"], path, description)
        except Exception as error:
            client.set_tag(run_id, "model.problem", one_line(error))
            return
        with journal.asking():
            run = client.get_run(run_id)
            found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
            logged = next(iter(found), None) or client.create_logged_model(
                run.info.experiment_id, "autoencoder", run_id, params=run.data.params
            )
        description.model_id = logged.model_id
        description.save(f"{path}/MLmodel")
        with journal.asking(), _time_to_upload():
            client.log_model_artifacts(logged.model_id, path)
        with journal.asking():
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
            outputs = run.outputs.model_outputs if run.outputs else []
            if logged.model_id not in {output.model_id for output in outputs}:
                client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])


def _export(weights: Path, path: str, description: "Model") -> None:
    """Write MLflow's format of a model to the folder `path`, which must not exist."""
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from pipeline.model import load_model

    pixels = TensorSpec(np.dtype(np.float32), (-1, 784))
    mlflow.pytorch.save_model(
        load_model(weights).eval(),
        path,
        mlflow_model=description,
        signature=ModelSignature(Schema([pixels]), Schema([pixels])),
        input_example=np.zeros((2, 784), np.float32),  # two rows, so that the batch stays free
        serialization_format="pt2",
        pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "numpy", "torch")],
    )


@contextmanager
def _time_to_upload() -> Iterator[None]:
    """A file needs longer than an answer does; nobody waits for it."""
    before = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(int(before), UPLOAD_SECONDS))
    try:
        yield
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before


if __name__ == "__main__":
    main()
