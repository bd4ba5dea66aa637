"""Send a journal's events to MLflow, and close the runs of processes that are gone."""

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core import processes
from pipeline.core.errors import PipelineError
from pipeline.experiment import EXPERIMENT
from pipeline.tracking.journal import Event, Journal, one_line, runs_waited_for
from pipeline.tracking.tags import JOURNAL_TAG, REPOSITORY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run
    from mlflow.models import Model

# The time limit of a request that uploads a file.
UPLOAD_SECONDS = 60
# MLflow's own limit for one request.
METRICS_IN_A_BATCH = 1000


def import_for_the_model() -> None:
    """Import what the model needs (takes seconds) while training is still running."""
    from mlflow.models import Model

    # It imports before it reads the file, which holds no model.
    with suppress(Exception):
        _export(Path(os.devnull), os.devnull, Model())


def batch_of(events: list[Event]) -> list[Event]:
    """Return the first events that one request sends: metrics together, every other event by itself."""
    batch, n_metrics = [events[0]], len(events[0].get("values", ()))
    for event in events[1:]:
        n_metrics += len(event.get("values", ()))
        alike = event["kind"] == batch[0]["kind"] == "metrics" and event.get("replay") == batch[0].get("replay")
        if not alike or n_metrics > METRICS_IN_A_BATCH:
            break
        batch.append(event)
    return batch


def send(client: "MlflowClient", journal: Journal, run_id: str, batch: list[Event]) -> None:
    event = batch[0]
    if event["kind"] == "model":
        _send_model(client, journal, run_id, event)
        return
    with journal.request_in_flight():
        match event["kind"]:
            case "start":
                _send_start(client, journal, run_id, event)
            case "metrics":
                new = [event for event in batch if event.get("step", math.inf) > journal.state()["last_step"]]
                _send_metrics(client, journal, run_id, new)
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
    if journal.run_journal_id() == journal.id:
        client.log_batch(run_id, params=params)
    else:
        # A stopped training is resumed in its run, which may have epochs after the last checkpoint.
        tags = [RunTag(name, value) for name, value in event["tags"].items()]
        client.log_batch(run_id, params=params, tags=tags)
        client.update_run(run_id, "RUNNING")
        journal.set_state(last_step=_last_step(client, run_id, journal))
    close_runs_of_dead_processes(client, client.get_run(run_id), journal.folder.parents[1])


def _last_step(client: "MlflowClient", run_id: str, journal: Journal) -> int:
    """Return the last epoch whose metrics the run has; 0 if none."""
    epochs = (event["values"] for event in journal.events() if "step" in event)
    name = next((name for values in epochs for name in values), None)
    points = client.get_metric_history(run_id, name) if name is not None else []
    return max((point.step for point in points), default=0)


def close_runs_of_dead_processes(client: "MlflowClient", newest: "Run", root: Path) -> None:
    """Set every other RUNNING run of this host to KILLED, at its last metric, if its process and its journal are gone.

    If its journal still exists, in `root` or in the run's own repository, delivering that journal closes the run.
    """
    for run in client.search_runs([newest.info.experiment_id], "attributes.status = 'RUNNING'"):
        run_id, tags = run.info.run_id, run.data.tags
        if run_id == newest.info.run_id or not processes.is_gone(tags):
            continue
        repositories = {root, Path(tags.get(REPOSITORY_TAG, root))}
        if any(tags.get(JOURNAL_TAG) in runs_waited_for(repository) for repository in repositories):
            continue
        # Read the status only now: a journal is deleted after its end is delivered, so no other end can follow.
        if client.get_run(run_id).info.status == "RUNNING":
            points = (point for name in run.data.metrics for point in client.get_metric_history(run_id, name))
            last_heard = max((point.timestamp for point in points), default=run.info.start_time)
            client.set_terminated(run_id, "KILLED", last_heard)


def _send_metrics(client: "MlflowClient", journal: Journal, run_id: str, batch: list[Event]) -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(name, value, event["time"], event["step"])
        for event in batch
        if "step" in event
        for name, value in event["values"].items()
    ]
    if of_run := [event for event in batch if "step" not in event]:
        metrics += _metrics_of_run(client, journal, run_id, of_run)
    for first in range(0, len(metrics), METRICS_IN_A_BATCH):
        client.log_batch(run_id, metrics[first : first + METRICS_IN_A_BATCH])


def _metrics_of_run(client: "MlflowClient", journal: Journal, run_id: str, events: list[Event]) -> "list[Metric]":
    """Return the metrics without a step whose value is new, for the run and for its model.

    `test/mse` belongs to the data set `test` among the run's inputs. A metric that starts with no data set's name
    belongs to none.
    """
    from mlflow.entities import Metric

    run = client.get_run(run_id)
    model = _model_of(client, run)
    newest = {metric.key: metric for metric in sorted(_metrics_of(model), key=lambda metric: metric.timestamp)}
    known = run.data.metrics if model is None else {name: metric.value for name, metric in newest.items()}
    inputs = (event["data_sets"] for event in journal.events() if event["kind"] == "inputs")
    data_sets = {item["context"]: item for items in inputs for item in items}
    metrics = {}
    for event in events:
        for name, value in event["values"].items():
            data = data_sets.get(name.partition("/")[0], {})
            # MLflow always refuses a model's second value with the same time, and shows the last one.
            time = max(event["time"], newest[name].timestamp + 1) if name in newest else event["time"]
            metrics[name] = Metric(
                name,
                value,
                time,
                0,
                model_id=None if model is None else model.model_id,
                dataset_name=data.get("name"),
                dataset_digest=data.get("digest"),
            )
    return [metric for name, metric in metrics.items() if known.get(name) != metric.value]


def _model_of(client: "MlflowClient", run: "Run") -> "LoggedModel | None":
    """Return the run's model in MLflow's format, None if it has none or somebody deleted it."""
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return next(iter(found), None)


def _metrics_of(model: "LoggedModel | None") -> "list[Metric]":
    return (model.metrics if model is not None else None) or []


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
    """Store the model in MLflow's own format, exported rather than pickled, for `load_model` and the registry.

    If the current code cannot load the weights, because it changed before delivery, the tag `model.problem` records
    the error and the model is omitted: retrying would always fail.
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
        with journal.request_in_flight():
            run = client.get_run(run_id)
            logged = _model_of(client, run) or client.create_logged_model(
                run.info.experiment_id, EXPERIMENT.model_name, run_id, params=run.data.params
            )
        description.model_id = logged.model_id
        description.save(f"{path}/MLmodel")
        with journal.request_in_flight(), _time_to_upload():
            client.log_model_artifacts(logged.model_id, path)
        with journal.request_in_flight():
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
            outputs = run.outputs.model_outputs if run.outputs else []
            if logged.model_id not in {output.model_id for output in outputs}:
                client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        with journal.request_in_flight():
            events = [event for event in journal.events() if event["kind"] == "metrics" and "step" not in event]
            _send_metrics(client, journal, run_id, events)  # again, because now there is a model


def _export(weights: Path, path: str, description: "Model") -> None:
    """Write a model in MLflow's format to the folder `path`, which must not exist."""
    if EXPERIMENT.save_for_mlflow is not None:
        EXPERIMENT.save_for_mlflow(str(weights), path, description)
        return
    import mlflow.pytorch
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    model = EXPERIMENT.load_model(str(weights)).eval()
    example = EXPERIMENT.example_input(model)
    with torch.no_grad():
        answer = model(torch.from_numpy(example)).numpy()
    given, returned = (Schema([TensorSpec(array.dtype, (-1, *array.shape[1:]))]) for array in (example, answer))
    mlflow.pytorch.save_model(
        model,
        path,
        mlflow_model=description,
        signature=ModelSignature(given, returned),
        input_example=example,
        serialization_format="pt2",
        pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "numpy", "torch")],
    )


@contextmanager
def _time_to_upload() -> Iterator[None]:
    """Raise the time limit of requests to UPLOAD_SECONDS inside the block. No stage waits for an upload."""
    before = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(int(before), UPLOAD_SECONDS))
    try:
        yield
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before
