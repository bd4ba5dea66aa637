"""One MLflow row for each pipeline run: training opens it, evaluation completes it.

The files under `models/` and `reports/` are the truth and MLflow mirrors them: numbers in JSON files
become metrics (`test/mse`), the history becomes metrics by epoch, everything is an artifact. No out
depends on this module: a store that fails costs a warning, never the run.

Evaluation finds the row by its fingerprint, a hash of all parameters and of what training wrote. A
run id in a file would not do: DVC restores files from its cache, and runs cannot be restored.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

from pipeline import dvcfiles, processes, provenance
from pipeline.store import open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipeline.model import AutoEncoder
    from pipeline.params import Params

FINGERPRINT_TAG = "fingerprint"
HISTORY_PATH = "reports/history.csv"
# Where the history's columns do not name their chart section themselves, it is `train`.
METRIC_NAMES = {"train_mse": "train/mse", "valid_mse": "valid/mse"}


@contextmanager
def training_run(params: "Params", device: str) -> Iterator["RunWriter"]:
    """A new row, RUNNING inside the block; FINISHED after it, FAILED after an error, KILLED by SIGTERM or Ctrl-C.

    Rows of this host whose process was killed without a word are set to KILLED first.
    """
    run = RunWriter()
    run.attempt(lambda: run.create(params, {"device": device} | processes.identity()))
    run.attempt(run.close_rows_of_dead_processes)
    try:
        with processes.sigterm_as_exit():
            yield run
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.end("FINISHED")


def log_evaluation(params: "Params", model: "AutoEncoder") -> None:
    """Bring evaluate's outs to the row of the training that made the weights.

    Where the store has no such row (another store, or DVC took the training from its cache), one is
    made from the tracked files; it has no timings and carries the tag `replayed`.
    """
    run = RunWriter()
    run.attempt(lambda: _evaluate_into(run, params, model))


def _evaluate_into(run: "RunWriter", params: "Params", model: "AutoEncoder") -> None:
    if not run.find(fingerprint(params)):
        _replay_training(run, params, model)
    run.write_outs("evaluate")
    run.write_inputs("evaluate", params)


def _replay_training(run: "RunWriter", params: "Params", model: "AutoEncoder") -> None:
    """A row as training would have left it, but for its timings, from the files that training wrote."""
    run.create(params, {"replayed": "true"} | processes.identity())
    try:
        for record in pd.read_csv(HISTORY_PATH).to_dict("records"):
            run.write_epoch({str(name): value for name, value in record.items()})
        run.write_training_outputs(params, model)
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")


class RunWriter:
    """Writes to one row. The `log_…` methods never raise: the first failure is told, the rest is skipped."""

    client: "MlflowClient"

    def __init__(self) -> None:
        self.run_id = ""
        self._failed = False

    def attempt(self, write: Callable[[], object]) -> None:
        """Call `write`; if it fails, say so once and write nothing more."""
        if self._failed:
            return
        try:
            write()
        except Exception as error:  # whatever the store does, the stage goes on
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._failed:
            reason = " ".join(str(error).split())[:300]
            print(f"warning: MLflow gets nothing more of this run: {type(error).__name__}: {reason}", file=sys.stderr)
        self._failed = True

    def end(self, status: str) -> None:
        """Set the row's status; FAILED if something of it could not be written, for it is not complete then."""
        if not self.run_id:
            return
        try:
            self.client.set_terminated(self.run_id, "FAILED" if self._failed else status)
        except Exception as error:
            self._warn(error)

    def log_epoch(self, record: dict[str, float], **timings: float) -> None:
        """One epoch: the history's columns, and timings, which only MLflow keeps."""
        self.attempt(lambda: self.write_epoch(record, timings))

    def log_training_outputs(self, params: "Params", model: "AutoEncoder") -> None:
        """What training wrote, and the fingerprint by which evaluation finds the row.

        If this training reproduced the bytes that were evaluated last, DVC will skip evaluate, so its
        outs are mirrored here.
        """

        def write() -> None:
            self.write_training_outputs(params, model)
            if dvcfiles.is_up_to_date("evaluate"):
                self.write_outs("evaluate")
                self.write_inputs("evaluate", params)

        self.attempt(write)

    def create(self, params: "Params", tags: dict[str, str]) -> None:
        """A new row with all parameters, named after what is usually compared."""
        self.client, experiment_id = open_store()
        prefix = "" if params.data.dataset == "mnist" else f"{params.data.dataset} "
        name = f"{prefix}k={params.model.bottleneck_size} seed={params.train.seed}"
        tags = {"mlflow.source.name": "dvc.yaml", "mlflow.source.type": "PROJECT"} | provenance.tags() | tags
        self.run_id = self.client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
        self.client.log_batch(self.run_id, params=[Param(key, str(value)) for key, value in params.flat().items()])
        self.write_inputs("train", params)

    def close_rows_of_dead_processes(self) -> None:
        """KILLED, at the time of the last metric, for every RUNNING row of this host whose process is gone."""
        experiment_id = self.client.get_run(self.run_id).info.experiment_id
        for row in self.client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
            if processes.is_gone(row.data.tags):
                epochs = self.client.get_metric_history(row.info.run_id, "train/mse")
                last_heard = max((point.timestamp for point in epochs), default=row.info.start_time)
                self.client.set_terminated(row.info.run_id, "KILLED", last_heard)

    def find(self, wanted: str) -> bool:
        """Take up the newest row with this fingerprint; False if the store has none."""
        self.client, experiment_id = open_store()
        rows = self.client.search_runs(
            [experiment_id], f"tags.{FINGERPRINT_TAG} = '{wanted}'", order_by=["start_time DESC"], max_results=1
        )
        if rows:
            self.run_id = rows[0].info.run_id
        return bool(rows)

    def write_epoch(self, record: dict[str, float], timings: dict[str, float] | None = None) -> None:
        epoch, now = int(record["epoch"]), int(time.time() * 1000)
        named = {METRIC_NAMES.get(key, f"train/{key}"): value for key, value in record.items() if key != "epoch"}
        named |= {f"time/{key}": value for key, value in (timings or {}).items()}
        self.client.log_batch(self.run_id, [Metric(key, value, now, epoch) for key, value in named.items()])

    def write_training_outputs(self, params: "Params", model: "AutoEncoder") -> None:
        self.client.log_artifact(self.run_id, "params.yaml")
        self.write_outs("train")
        self._write_model(model)
        self.client.set_tag(self.run_id, FINGERPRINT_TAG, fingerprint(params))

    def write_outs(self, stage: str) -> None:
        """A stage's outs: every file as an artifact under its own path, the numbers of JSON files as metrics.

        A metric whose last value is already there is not written again.
        """
        known = self.client.get_run(self.run_id).data.metrics
        now = int(time.time() * 1000)
        metrics = []
        for path in map(Path, dvcfiles.declared(stage)["outs"]):
            self.client.log_artifact(self.run_id, str(path), str(path.parent))
            if path.suffix == ".json":
                numbers = flatten(json.loads(path.read_text()))
                metrics += [Metric(key, value, now, 0) for key, value in numbers.items() if known.get(key) != value]
        self.client.log_batch(self.run_id, metrics)

    def write_inputs(self, stage: str, params: "Params") -> None:
        """The hashes of what a stage reads (`inputs/<stage>.json`) and its data as MLflow data sets."""
        hashes = dvcfiles.md5s(dvcfiles.declared(stage)["deps"])
        self.client.log_dict(self.run_id, hashes, f"inputs/{stage}.json")
        data = [
            DatasetInput(
                Dataset(f"{params.data.dataset}-{Path(path).stem}", md5, "local", json.dumps({"uri": path})),
                [InputTag("mlflow.data.context", Path(path).stem)],
            )
            for path, md5 in hashes.items()
            if path.startswith("data/prepared/")
        ]
        self.client.log_inputs(self.run_id, data)

    def _write_model(self, model: "AutoEncoder") -> None:
        """The model in MLflow's own format, exported rather than pickled, for load_model and the registry."""
        import mlflow.pytorch
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        pixels = TensorSpec(np.dtype(np.float32), (-1, 784))
        with mlflow.start_run(run_id=self.run_id):
            mlflow.pytorch.log_model(
                model.eval(),
                name="autoencoder",
                signature=ModelSignature(Schema([pixels]), Schema([pixels])),
                input_example=np.zeros((2, 784), np.float32),  # two rows, so that the batch stays free
                serialization_format="pt2",
                pip_requirements=[f"{package}=={version(package)}" for package in ("mlflow", "numpy", "torch")],
            )


def fingerprint(params: "Params") -> str:
    """A hash of all parameters and of everything that training wrote."""
    content = {"params": params.flat(), "outs": dvcfiles.md5s(dvcfiles.declared("train")["outs"])}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """{'test': {'mse': 0.04}} → {'test/mse': 0.04}; what is no number is left out."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat
