"""One MLflow row for each pipeline run: training opens it, evaluation completes it.

The files under `models/` and `reports/` are the truth and MLflow mirrors them: numbers in JSON files
become metrics (`test/mse`), the history becomes metrics by epoch, everything is an artifact. What happens
is written into a journal on this machine, and `pipeline.delivery`, a process of its own, brings that to
MLflow: no stage waits for a store, and no out depends on one.

Evaluation finds the row by its fingerprint, a hash of all parameters and of what training wrote. A
run id in a file would not do: DVC restores files from its cache, and runs cannot be restored.

PIPELINE_TRACKING=0 in the environment switches all of it off.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pandas as pd

from pipeline import dvcfiles, environment, processes, provenance, store
from pipeline.journal import Event, Journal, journals, now_ms, one_line
from pipeline.params import short
from pipeline.repository import main_root

if TYPE_CHECKING:
    from pipeline.params import Params

MODEL_PATH = "models/autoencoder.safetensors"
HISTORY_PATH = "reports/history.csv"
# Where the history's columns do not name their chart section themselves, it is `train`.
METRIC_NAMES = {"train_mse": "train/mse", "valid_mse": "valid/mse"}
# How long a stage's end waits for a server to answer at all, for each answer of a server, and in all.
ANSWER_SECONDS = 1.0
PATIENCE_SECONDS = 3.0
LONGEST_WAIT_SECONDS = 60.0
LONGEST_NAME = 100
# Every run's name has these.
PARAMS_IN_RUN_NAME = ("data.dataset", "model.bottleneck_size", "train.seed")


@dataclass(frozen=True)
class Continued:
    """A training that was stopped: its `TrainingRun.id` (None if it was not tracked), and its epochs so far."""

    id: str | None
    epochs: list[dict[str, float]]


@contextmanager
def training_run(params: "Params", device: str, continued: Continued | None = None) -> Iterator["TrainingRun"]:
    """A row, RUNNING inside the block; FINISHED after it, FAILED after an error, KILLED by SIGTERM or Ctrl-C.

    It is a new row, or that of the training that goes on. Rows of this host whose process was killed
    without a word are set to KILLED.
    """
    run = TrainingRun(continued or Continued(None, []))
    run.attempt(lambda: run.start(params, device))
    try:
        with processes.sigterm_as_exit():
            yield run
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.end("FINISHED")


class TrainingRun:
    """Writes the journal of one training. Its methods never raise: the first trouble is told, once.

    What cannot be written down (a full disk, say) leaves the row incomplete; it ends as FAILED then.
    """

    def __init__(self, continued: Continued) -> None:
        self.id = continued.id  # of the row, in whatever store it is
        self.journal: Journal | None = None
        self._continued = continued
        self._delivery: subprocess.Popen[bytes] | None = None
        self._model: list[Event] = []
        self._training_seconds = math.nan if continued.epochs else 0.0
        self._incomplete = False
        self._warned = False

    def attempt(self, write: Callable[[], object]) -> None:
        """Call `write`, unless tracking is off or something could not be written before."""
        if not is_on() or self._incomplete:
            return
        try:
            write()
        except Exception as error:
            self._incomplete = True
            self._warn(f"this run is not in MLflow as a whole: {one_line(error)}")

    def _warn(self, text: str) -> None:
        if not self._warned:
            print(f"warning: {text}", file=sys.stderr)
        self._warned = True

    def start(self, params: "Params", device: str) -> None:
        import torch

        from pipeline.training import resolve_precision

        precision = str(resolve_precision(params.train.precision, torch.device(device))).removeprefix("torch.")
        environment_tags = environment.fingerprint(device) | {"precision": precision}
        tags = provenance.tags() | {f"env.{name}": value for name, value in environment_tags.items()}
        for earlier in journals(main_root()):
            with suppress(FileNotFoundError):  # delivered a moment ago
                if earlier.run() == self.id:
                    earlier.close()
        with Journal.create(main_root()) as journal:
            run = self.id or journal.id
            journal.append(_start(params, tags) | {"run": run})
            for record in self._continued.epochs:
                journal.append(_epoch(record, {}))
            _append_diff(journal)
            _append_inputs(journal, "train", params)
        self.id, self.journal = run, journal
        self._delivery = start_delivery(journal)

    def log_epoch(self, record: dict[str, float], *, epoch_seconds: float, **timings: float) -> None:
        """One epoch: the history's columns, and timings, which only MLflow keeps.

        With their sum so far, which is no number once a training was stopped: what was lost is not known.
        """
        self._training_seconds += epoch_seconds
        timings |= {"epoch_seconds": epoch_seconds, "training_seconds": self._training_seconds}
        self.attempt(lambda: self._write_epoch(record, timings))

    def _write_epoch(self, record: dict[str, float], timings: dict[str, float]) -> None:
        assert self.journal is not None
        self.journal.append(_epoch(record, timings))
        if (problem := self.journal.problem()) is not None:
            self._warn(f"MLflow cannot be reached; the run goes on, its journal keeps the rest ({problem[0]})")

    def log_training_outputs(self, params: "Params") -> None:
        """What training wrote, and the fingerprint by which evaluation finds the row.

        If this training reproduced the bytes that were evaluated last, DVC will skip evaluate, so its
        outs are mirrored here.
        """
        self.attempt(lambda: self._write_training_outputs(params))

    def _write_training_outputs(self, params: "Params") -> None:
        assert self.journal is not None
        self._model = _append_training_outputs(self.journal, params)
        if dvcfiles.is_up_to_date("evaluate"):
            _append_evaluation(self.journal, params)

    def end(self, status: str) -> None:
        """The row's status; then a moment for what is not delivered yet, MLflow's copy of the model aside.

        That one takes seconds to make, beside the next stage.
        """
        if self.journal is None:
            return
        try:
            n_events = len(self.journal.events()) + 1
            status = "FAILED" if self._incomplete else status
            self.journal.append({"kind": "end", "status": status}, *self._model)
            if self._delivery is not None and (why := wait_for_delivery(self.journal, self._delivery, n_events)):
                self._warn(why)
        except Exception as error:
            self._warn(f"this run is not in MLflow as a whole: {one_line(error)}")


def log_evaluation(params: "Params", delivery: "subprocess.Popen[bytes] | None" = None) -> None:
    """Bring evaluate's outs to the row of the training that made the weights.

    Where the store has no such row (another store, or DVC took the training from its cache), one is
    made from the tracked files; it has no timings and carries the tag `replayed`. Never raises.

    Args:
        delivery: what `prepare_delivery` returned before the evaluation.
    """
    if not is_on():
        return
    try:
        journal = write_evaluation(params)
        why = wait_for_delivery(journal, _hand_over(journal, delivery) or start_delivery(journal), None)
    except Exception as error:
        why = f"this evaluation is not in MLflow: {one_line(error)}"
    if why is not None:
        print(f"warning: {why}", file=sys.stderr)


def write_evaluation(params: "Params") -> Journal:
    """A journal of all that the workspace holds of a run, of which delivery sends what the store lacks."""
    with Journal.create(main_root()) as journal:
        start = _start(params, provenance.tags() | {"replayed": "true"})
        journal.append(start | {"fingerprint": fingerprint(params), "evaluation": evaluation_hash()})
        for record in pd.read_csv(HISTORY_PATH).to_dict("records"):
            journal.append(_epoch({str(name): value for name, value in record.items()}, {}) | {"replay": True})
        _append_diff(journal, replay=True)
        _append_inputs(journal, "train", params, replay=True)
        model = _append_training_outputs(journal, params, replay=True)
        _append_evaluation(journal, params)
        journal.append({"kind": "end", "status": "FINISHED", "replay": True}, *model)
    return journal


def prepare_delivery() -> "subprocess.Popen[bytes] | None":
    """A process that imports mlflow, which takes seconds, while this one works, and then waits for `log_evaluation`.

    It ends by itself if this one ends before. None where tracking is off or nothing can be started.
    """
    if is_on():
        with suppress(OSError):
            return _start_delivery([], subprocess.PIPE, subprocess.DEVNULL)
    return None


def start_delivery(journal: Journal) -> "subprocess.Popen[bytes]":
    """The process that delivers a journal."""
    with (journal.folder / "delivery.log").open("wb") as log:
        return _start_delivery([str(journal.folder)], subprocess.DEVNULL, log)


def _start_delivery(arguments: list[str], stdin: int, log: "IO[bytes] | int") -> "subprocess.Popen[bytes]":
    """Signals to this process's group do not reach it."""
    # It works in the main repository, with the code of this stage: DVC's temporary folders go away.
    code = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline.delivery", *arguments],
        cwd=main_root(),
        env=os.environ | {"PYTHONPATH": paths},
        stdin=stdin,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _hand_over(journal: Journal, delivery: "subprocess.Popen[bytes] | None") -> "subprocess.Popen[bytes] | None":
    """Tell a prepared process which journal is its own; None if there is none, or it has ended."""
    if delivery is None or delivery.stdin is None:
        return None
    try:
        with delivery.stdin:
            delivery.stdin.write(os.fsencode(journal.folder))
    except BrokenPipeError:
        return None
    return delivery


def wait_for_delivery(journal: Journal, delivery: "subprocess.Popen[bytes]", n_events: int | None) -> str | None:
    """Wait until the first `n_events` of a journal, or all of it, are delivered; else why not.

    It waits for work on this machine and while a server answers, but hardly for one that does not:
    delivery goes on without it.
    """
    started, started_clock = time.monotonic(), time.time()
    later = "the journal keeps the run, the next one or `make sync` delivers it"
    silent = f"MLflow does not answer; delivery goes on in the background; should it fail, {later}"
    uri = store.tracking_uri(main_root())
    address = store.store_name(uri, main_root())
    if store.is_server(uri) and not store.answers(uri, ANSWER_SECONDS):
        return silent
    patience = PATIENCE_SECONDS if store.is_server(uri) else LONGEST_WAIT_SECONDS
    while journal.exists() and (n_events is None or journal.state()["delivered"] < n_events):
        problem = journal.problem()
        if problem is not None and problem[1] >= started_clock:
            return f"MLflow cannot be reached; {later} ({problem[0]})"
        if delivery.poll() is not None and journal.exists():
            return f"the delivery to MLflow ended early, see {journal.folder}/delivery.log; {later}"
        waited = time.monotonic() - started
        if waited > LONGEST_WAIT_SECONDS or _longest_request(journal, address, started_clock) > patience:
            return silent
        time.sleep(0.05)
    return None


def _longest_request(journal: Journal, address: str, since: float) -> float:
    """How many seconds a request of this journal or one before it has been out, counted from `since` on."""
    waiting = [other for other in journals(main_root(), address) if other.id <= journal.id]
    asking = [other.state()["asking_since"] for other in waiting]
    return max((time.time() - max(asked, since) for asked in asking if asked is not None), default=0.0)


def is_on() -> bool:
    return os.environ.get("PIPELINE_TRACKING", "1") != "0"


def fingerprint(params: "Params", outs: dict[str, str] | None = None) -> str:
    """A hash of all parameters and of everything that training wrote: {path: MD5}, by default the workspace's."""
    if outs is None:
        outs = dvcfiles.md5s(dvcfiles.declared("train")["outs"])
    return _hash({"params": params.flat(), "outs": outs})


def evaluation_hash() -> str:
    """A hash of everything that evaluation read and wrote."""
    declared = dvcfiles.declared("evaluate")
    return _hash(dvcfiles.md5s(declared["deps"] + declared["outs"]))


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_of_stages() -> dict[str, str]:
    """{path: MD5} of every Python file that some stage depends on."""
    deps = {path for stage in dvcfiles.all_stages() for path in dvcfiles.declared(stage)["deps"]}
    return dvcfiles.md5s(sorted(path for path in deps if path.endswith(".py")))


def code_tag() -> str:
    """The tag `code` of a row made now: rows of other code do not compare."""
    return _hash(code_of_stages())[:16]


def run_name(params: "Params", varied: Collection[str] = ()) -> str:
    """A run's name: bottleneck size and seed, then the parameters `varied`, then those that differ from the commit.

    It has at most LONGEST_NAME characters. MLFLOW_RUN_NAME in the environment replaces it.
    """
    values, committed = params.flat(), provenance.committed_params()
    differing = [name for name, value in values.items() if committed.get(name, value) != value]
    dataset = [] if params.data.dataset == "mnist" else [params.data.dataset]
    usual = [f"k={params.model.bottleneck_size}", f"seed={params.train.seed}"]
    others = [name for name in dict.fromkeys([*varied, *differing]) if name not in PARAMS_IN_RUN_NAME]
    text = " ".join([*dataset, *usual, *(f"{short(name)}={values[name]}" for name in others)])
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def _start(params: "Params", tags: dict[str, str]) -> Event:
    """The first event: all parameters, and the row's name."""
    owner = processes.identity()
    return {
        "kind": "start",
        "store": store.store_name(store.tracking_uri(main_root()), main_root()),
        "experiment": store.experiment_name(),
        "name": os.environ.get("MLFLOW_RUN_NAME") or run_name(params),
        "tags": {"mlflow.source.name": "dvc.yaml", "mlflow.source.type": "PROJECT"}
        | owner
        | {"code": code_tag()}
        | tags,
        "params": {name: str(value) for name, value in params.flat().items()},
        "owner": owner,
    }


def _epoch(record: dict[str, float], timings: dict[str, float]) -> Event:
    values = {METRIC_NAMES.get(key, f"train/{key}"): value for key, value in record.items() if key != "epoch"}
    values |= {f"time/{key}": value for key, value in timings.items()}
    return {"kind": "metrics", "values": values, "step": int(record["epoch"])}


def _append_diff(journal: Journal, **replay: bool) -> None:
    """The code that differs from the commit (`inputs/code.diff`), if some does."""
    if diff := provenance.diff_of_code():
        path = journal.folder / "code.diff"
        path.write_text(diff)
        journal.append_artifact(path, "inputs", **replay)


def _append_training_outputs(journal: Journal, params: "Params", **replay: bool) -> list[Event]:
    """All that training leaves but the model in MLflow's format, whose event is returned."""
    journal.append_artifact(Path("params.yaml"), "", **replay)
    _append_outs(journal, "train", **replay)
    tags = {"fingerprint": fingerprint(params), "model.md5": dvcfiles.md5s([MODEL_PATH])[MODEL_PATH]}
    journal.append({"kind": "tags", "values": tags} | replay)
    return [{"kind": "model", "time": now_ms(), "file": journal.keep(Path(MODEL_PATH))} | replay]


def _append_evaluation(journal: Journal, params: "Params") -> None:
    _append_outs(journal, "evaluate")
    _append_inputs(journal, "evaluate", params)
    # Last, for it says that the rest is there.
    journal.append({"kind": "tags", "values": {"evaluation": evaluation_hash()}})


def _append_outs(journal: Journal, stage: str, **replay: bool) -> None:
    """A stage's outs: every file as an artifact under its own path, the numbers of JSON files as metrics."""
    for path in map(Path, dvcfiles.declared(stage)["outs"]):
        journal.append_artifact(path, str(path.parent), **replay)
        if path.suffix == ".json":
            journal.append({"kind": "metrics", "values": flatten(json.loads(path.read_text()))} | replay)


def _append_inputs(journal: Journal, stage: str, params: "Params", **replay: bool) -> None:
    """The hashes of what a stage reads (`inputs/<stage>.json`) and its data as MLflow data sets."""
    hashes = dvcfiles.md5s(dvcfiles.declared(stage)["deps"])
    listing = journal.folder / f"{stage}.json"
    listing.write_text(json.dumps(hashes, indent=2) + "\n")
    journal.append_artifact(listing, "inputs", **replay)
    data_sets = [
        {"name": f"{params.data.dataset}-{Path(path).stem}", "digest": md5, "path": path, "context": Path(path).stem}
        for path, md5 in hashes.items()
        if path.startswith("data/prepared/")
    ]
    journal.append({"kind": "inputs", "data_sets": data_sets} | replay)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """{'test': {'mse': 0.04}} → {'test/mse': 0.04}; what is no number is left out."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat
