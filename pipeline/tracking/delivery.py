"""Bring journals to MLflow, each event once and as of the time at which it happened.

    python -m pipeline.tracking.delivery [FOLDER]    (started by a training or an evaluation for its journal)

Without a folder it waits for its name on stdin.

It runs beside the stage in a process of its own: a store that is slow, hangs or dies costs the stage
nothing, and a stage that is killed still gets its row closed. What could not be delivered stays in the
journal; the next run on this machine delivers it, or `make sync`.

Every step may be repeated: a run is found by its journal's name before it is made, MLflow takes a metric
of the same time and value once, tags, parameters and artifacts replace themselves.

The functions at the end are the stage's side: they start that process and wait for it.
"""

import importlib
import os
import pkgutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pipeline
from pipeline.core import processes
from pipeline.core.errors import PipelineError
from pipeline.core.repository import main_root
from pipeline.tracking import store
from pipeline.tracking.journal import Event, Journal, journals
from pipeline.tracking.mlflow_writer import batch_of, import_for_the_model, send
from pipeline.tracking.store import find_training, is_on, newest, open_store, store_name, tracking_uri
from pipeline.tracking.tags import EVALUATION_TAG, JOURNAL_TAG, REPOSITORY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


POLL_SECONDS = 0.1
# A training that takes less has no time to spare for them.
SECONDS_BEFORE_IMPORTS = 30.0
LONGEST_PAUSE_SECONDS = 30.0
# How long a stage's end waits for a server to answer at all, for each answer of a server, and in all.
ANSWER_SECONDS = 1.0
PATIENCE_SECONDS = 3.0
LONGEST_WAIT_SECONDS = 60.0


def main() -> None:
    os.nice(10)  # the stage has the processors first
    folder = sys.argv[1] if len(sys.argv) > 1 else _wait_for_a_journal()
    if not folder:
        return
    journal = Journal(Path(folder))
    root = journal.folder.parents[1]
    os.chdir(root)
    find_code_in(root)
    follow(journal, root)


def find_code_in(root: Path) -> None:
    """Import the rest from `root`, should the folder that this code came from go away: one of DVC's temporary ones."""
    # Each package has its own list of folders, which an import that comes later would not have got.
    for found in pkgutil.iter_modules(pipeline.__path__):
        if found.ispkg:
            importlib.import_module(f"pipeline.{found.name}")
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] == "pipeline" and hasattr(module, "__path__"):
            module.__path__.append(str(root.joinpath(*name.split("."))))


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
            import_for_the_model()
        time.sleep(POLL_SECONDS)


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
            batch = batch_of(events[position:])
            if created or not (batch[0]["kind"] == "start" or batch[0].get("replay")):
                send(client, journal, run_id, batch)
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
    made_before = newest(client, experiment_id, f"tags.{JOURNAL_TAG} = '{name}'")
    if made_before is not None:
        return made_before, True
    trained = find_training(client, experiment_id, start["fingerprint"]) if "fingerprint" in start else None
    if trained is not None:
        return trained, False
    tags = start["tags"] | {JOURNAL_TAG: name, REPOSITORY_TAG: str(journal.folder.parents[1])}
    return client.create_run(experiment_id, start["time"], tags, start["name"]), True


def prepare_delivery() -> "subprocess.Popen[bytes] | None":
    """A process that imports mlflow, which takes seconds, while this one works, and then waits for `hand_over`.

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
    code = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline.tracking.delivery", *arguments],
        cwd=main_root(),
        env=os.environ | {"PYTHONPATH": paths},
        stdin=stdin,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def hand_over(journal: Journal, delivery: "subprocess.Popen[bytes] | None") -> "subprocess.Popen[bytes] | None":
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


if __name__ == "__main__":
    main()
