"""One MLflow run per execution of the pipeline: training starts it, evaluation completes it.

The files under `models/` and `reports/` are authoritative, and MLflow mirrors them. Numbers in JSON files become
metrics (`test/mse`), the history becomes metrics by epoch, and every file becomes an artifact. The stages write to a
local journal, and a separate process, `pipeline.tracking.delivery`, sends it to MLflow. So no output depends on the
store, and a stage waits for delivery only at its end.

Evaluation finds the run by its fingerprint, a hash of all parameters and all training outputs. A file with the run id
would not work, because DVC restores files from its cache but cannot restore runs.

PIPELINE_TRACKING=0 in the environment disables tracking.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.core import dvcfiles, processes
from pipeline.core.errors import PipelineError
from pipeline.core.files import numbers
from pipeline.core.repository import main_root
from pipeline.experiment import EXPERIMENT
from pipeline.tracking import delivery, provenance, store
from pipeline.tracking.fingerprints import evaluation_code, evaluation_hash, fingerprint, run_name, training_code
from pipeline.tracking.journal import Event, Journal, journals, now_ms, one_line
from pipeline.tracking.store import is_on

if TYPE_CHECKING:
    from pipeline.params import Params


@dataclass(frozen=True)
class Resumed:
    """A stopped training: its `TrainingRun.id` (None if it was not tracked), and its epochs so far."""

    id: str | None
    epochs: list[dict[str, float]]


@contextmanager
def training_run(params: "Params", device: str, continued: Resumed | None = None) -> Iterator["TrainingRun"]:
    """Yield a run: RUNNING inside the block, then FINISHED, FAILED after an error, or KILLED by SIGTERM or Ctrl-C.

    It is a new run, or that of the training that is resumed. Other runs of this host whose process is gone are set to
    KILLED.
    """
    run = TrainingRun(continued or Resumed(None, []))
    run.warn_on_error(lambda: run.start(params, device))
    try:
        with processes.sigterm_as_exit():
            yield run
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.end("FINISHED")


class TrainingRun:
    """The journal of one training. Tracking errors never stop training: the first one prints a warning.

    If something cannot be written, for example on a full disk, the run is incomplete and ends as FAILED.
    """

    def __init__(self, continued: Resumed) -> None:
        self.id = continued.id  # the run's id in its journals; independent of the store
        self.journal: Journal | None = None
        self._continued = continued
        self._delivery: subprocess.Popen[bytes] | None = None
        self._model: list[Event] = []
        self._training_seconds = math.nan if continued.epochs else 0.0
        self._n_examples = 0  # in the current epoch so far
        self._incomplete = False
        self._warned = False

    def warn_on_error(self, write: Callable[[], object]) -> None:
        """Call `write` and warn on an error. Do nothing if tracking is off or an earlier write failed."""
        if not is_on() or self._incomplete:
            return
        try:
            write()
        except Exception as error:
            self._incomplete = True
            self._warn(f"this run is incomplete in MLflow: {one_line(error)}")

    def _warn(self, text: str) -> None:
        if not self._warned:
            print(f"warning: {text}", file=sys.stderr)
        self._warned = True

    def start(self, params: "Params", device: str) -> None:
        environment = EXPERIMENT.environment(params, device)
        tags = provenance.tags() | {f"env.{name}": value for name, value in environment.items()}
        for earlier in journals(main_root()):
            with suppress(FileNotFoundError):  # delivered a moment ago
                if earlier.run_journal_id() == self.id:
                    earlier.close()
        with Journal.create(main_root()) as journal:
            run = self.id or journal.id
            journal.append(_start(params, tags) | {"run": run})
            for record in self._continued.epochs:
                journal.append(_epoch(record, {}))
            _append_diff(journal)
            _append_inputs(journal, EXPERIMENT.train, params)
        self.id, self.journal = run, journal
        self._delivery = delivery.start_delivery(journal)

    def on_batch(self, n_examples: int) -> None:
        self._n_examples += n_examples

    def on_epoch(self, record: Any, seconds: float) -> None:
        """Log an epoch's record (a dataclass) and the seconds that its training steps took."""
        speed = {f"{EXPERIMENT.examples}_per_second": self._n_examples / seconds}
        self.log_epoch(asdict(record), epoch_seconds=seconds, **speed)
        self._n_examples = 0

    def log_epoch(self, record: dict[str, float], *, epoch_seconds: float, **timings: float) -> None:
        """Log one epoch: the history's columns, and timings, which only MLflow stores.

        Also log the total training time so far. It is NaN for a resumed training, because the lost time is unknown.
        """
        self._training_seconds += epoch_seconds
        timings |= {"epoch_seconds": epoch_seconds, "training_seconds": self._training_seconds}
        self.warn_on_error(lambda: self._write_epoch(record, timings))

    def _write_epoch(self, record: dict[str, float], timings: dict[str, float]) -> None:
        assert self.journal is not None
        self.journal.append(_epoch(record, timings))
        if (problem := self.journal.problem()) is not None:
            self._warn(f"MLflow cannot be reached; training continues, and the journal keeps the run ({problem[0]})")

    def log_training_outputs(self, params: "Params") -> None:
        """Log the training outputs, and the fingerprint by which evaluation finds the run.

        If training reproduced the bytes that were evaluated last, DVC skips evaluate, so its outputs are logged here.
        """
        self.warn_on_error(lambda: self._write_training_outputs(params))

    def _write_training_outputs(self, params: "Params") -> None:
        assert self.journal is not None
        self._model = _append_training_outputs(self.journal, params)
        if dvcfiles.is_up_to_date(EXPERIMENT.evaluate):
            _append_evaluation(self.journal, params)

    def end(self, status: str) -> None:
        """End the run with a status, then wait for the delivery of everything except MLflow's copy of the model.

        That copy takes seconds to create and is sent while the next stage runs.
        """
        if self.journal is None:
            return
        try:
            n_events = len(self.journal.events()) + 1
            status = "FAILED" if self._incomplete else status
            self.journal.append({"kind": "end", "status": status}, *self._model)
            if self._delivery is not None and (
                why := delivery.wait_for_delivery(self.journal, self._delivery, n_events)
            ):
                self._warn(why)
        except Exception as error:
            self._warn(f"this run is incomplete in MLflow: {one_line(error)}")


@contextmanager
def evaluation_run(params: "Params") -> Iterator[None]:
    """Evaluate inside the block; afterwards log the outputs to the run of their training.

    If the block raises, nothing is logged.
    """
    prepared = delivery.prepare_delivery()
    yield
    log_evaluation(params, prepared)


def log_evaluation(params: "Params", prepared: "subprocess.Popen[bytes] | None" = None) -> None:
    """Log evaluate's outputs to the run of the training that produced the weights. Never raises.

    If the store has no such run (it is another store, or DVC restored the training from its cache), one is created
    from the workspace's files. It has no timings and has the tag `replayed`.

    Args:
        prepared: what `delivery.prepare_delivery` returned before the evaluation.
    """
    if not is_on():
        return
    try:
        journal = write_evaluation(params)
        process = delivery.hand_over(journal, prepared) or delivery.start_delivery(journal)
        why = delivery.wait_for_delivery(journal, process, None)
    except Exception as error:
        why = f"this evaluation is not in MLflow: {one_line(error)}"
    if why is not None:
        print(f"warning: {why}", file=sys.stderr)


def write_evaluation(params: "Params") -> Journal:
    """Write a journal of the workspace's complete run. Delivery sends what the store lacks."""
    with Journal.create(main_root()) as journal:
        start = _start(params, provenance.tags() | {"replayed": "true"})
        journal.append(start | {"fingerprint": fingerprint(params), "evaluation": evaluation_hash()})
        for record in pd.read_csv(EXPERIMENT.history_path).to_dict("records"):
            journal.append(_epoch({str(name): value for name, value in record.items()}, {}) | {"replay": True})
        _append_diff(journal, replay=True)
        _append_inputs(journal, EXPERIMENT.train, params, replay=True)
        model = _append_training_outputs(journal, params, replay=True)
        _append_evaluation(journal, params)
        journal.append({"kind": "end", "status": "FINISHED", "replay": True}, *model)
    return journal


def _start(params: "Params", tags: dict[str, str]) -> Event:
    """Return the first event, with the run's name, tags and all parameters."""
    owner = processes.identity()
    return {
        "kind": "start",
        "store": store.store_name(store.tracking_uri(main_root()), main_root()),
        "experiment": store.experiment_name(),
        "name": os.environ.get("MLFLOW_RUN_NAME") or run_name(params),
        "tags": {"mlflow.source.name": "dvc.yaml", "mlflow.source.type": "PROJECT"}
        | owner
        | {"code": training_code()}
        | tags,
        "params": {name: str(value) for name, value in params.flat().items()},
        "owner": owner,
    }


def _epoch(record: dict[str, float], timings: dict[str, float]) -> Event:
    values = {epoch_metric(key): value for key, value in record.items() if key != "epoch"}
    values |= {f"time/{key}": value for key, value in timings.items()}
    return {"kind": "metrics", "values": values, "step": int(record["epoch"])}


def epoch_metric(column: str) -> str:
    """Return the metric name of a history column: `valid/mse` for `valid_mse`, `train/lr` for `lr`."""
    split, _, name = column.partition("_")
    return f"{split}/{name}" if split in ("train", "valid") and name else f"train/{column}"


def _append_diff(journal: Journal, **replay: bool) -> None:
    """Append the diff of code against the commit (`inputs/code.diff`), if there is one."""
    if diff := provenance.diff_of_code():
        path = journal.folder / "code.diff"
        path.write_text(diff)
        journal.append_artifact(path, "inputs", **replay)


def _append_training_outputs(journal: Journal, params: "Params", **replay: bool) -> list[Event]:
    """Append all training outputs. Return the event of the model in MLflow's format, which is appended last."""
    journal.append_artifact(Path("params.yaml"), "", **replay)
    _append_outs(journal, EXPERIMENT.train, **replay)
    model = EXPERIMENT.model_path
    tags = {"fingerprint": fingerprint(params), "model.md5": dvcfiles.md5s([model])[model]}
    journal.append({"kind": "tags", "values": tags} | replay)
    return [{"kind": "model", "time": now_ms(), "file": journal.keep(Path(model))} | replay]


def _append_evaluation(journal: Journal, params: "Params") -> None:
    _append_inputs(journal, EXPERIMENT.evaluate, params)  # first, because the metrics refer to the data sets
    _append_outs(journal, EXPERIMENT.evaluate)
    # This tag comes last, because it marks the evaluation as complete.
    journal.append({"kind": "tags", "values": {"evaluation.code": evaluation_code(), "evaluation": evaluation_hash()}})


def _append_outs(journal: Journal, stage: str, **replay: bool) -> None:
    """Append a stage's outputs: every file as an artifact under its own path, numbers of JSON files as metrics.

    Raises:
        PipelineError: a number has the same name as a metric by epoch.
    """
    with Path(EXPERIMENT.history_path).open() as history:
        by_epoch = set(map(epoch_metric, history.readline().strip().split(",")))
    for path in map(Path, dvcfiles.declared(stage)["outs"]):
        journal.append_artifact(path, str(path.parent), **replay)
        if path.suffix == ".json":
            values = numbers(json.loads(path.read_text()))
            if twice := values.keys() & by_epoch:
                raise PipelineError(
                    f"{path} and {EXPERIMENT.history_path} both have {', '.join(sorted(twice))}, and MLflow would "
                    "mix them up; rename one"
                )
            journal.append({"kind": "metrics", "values": values} | replay)


def _append_inputs(journal: Journal, stage: str, params: "Params", **replay: bool) -> None:
    """Append the hashes of a stage's dependencies (`inputs/<stage>.json`), and its data as MLflow data sets."""
    hashes = dvcfiles.md5s(dvcfiles.declared(stage)["deps"])
    listing = journal.folder / f"{stage}.json"
    listing.write_text(json.dumps(hashes, indent=2) + "\n")
    journal.append_artifact(listing, "inputs", **replay)
    data = EXPERIMENT.data_name(params)
    data_sets = [
        {
            "name": f"{data}-{Path(path).stem}",
            "digest": md5,
            "path": path,
            "context": Path(path).stem,
        }
        for path, md5 in hashes.items()
        if path.startswith(EXPERIMENT.data_folder)
    ]
    journal.append({"kind": "inputs", "data_sets": data_sets} | replay)
