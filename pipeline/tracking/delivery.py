"""Deliver journals to MLflow: each event once, with the time at which it happened.

    python -m pipeline.tracking.delivery [FOLDER]    (started by training or evaluation for its journal)

Without a folder it reads the folder's name from stdin.

Delivery runs in its own process next to the stage. A slow, hanging or failing store therefore does not delay the
stage, and the run of a killed stage is still closed. Events that could not be delivered stay in the journal; the next
run on this machine or `make sync` delivers them.

Every step can be repeated safely. A run is looked up by its journal's name before it is created, MLflow stores a metric
with the same time and value once, and tags, parameters and artifacts are overwritten.

The functions at the end are the stage's side: they start the delivery process and wait for it.
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
# Start the model's imports only after this time, so that they do not slow down a short training.
SECONDS_BEFORE_IMPORTS = 30.0
LONGEST_PAUSE_SECONDS = 30.0
# How long a stage waits at its end: for a server's first answer, for each request, and in total.
ANSWER_SECONDS = 1.0
PATIENCE_SECONDS = 3.0
LONGEST_WAIT_SECONDS = 60.0


def main() -> None:
    os.nice(10)  # the stage has priority
    folder = sys.argv[1] if len(sys.argv) > 1 else _wait_for_a_journal()
    if not folder:
        return
    journal = Journal(Path(folder))
    root = journal.folder.parents[1]
    os.chdir(root)
    find_code_in(root)
    follow(journal, root)


def find_code_in(root: Path) -> None:
    """Make later imports fall back to `root`, in case this code's folder is a temporary one that DVC deletes."""
    # Import every package now: each has its own search path, and only imported packages can be extended.
    for found in pkgutil.iter_modules(pipeline.__path__):
        if found.ispkg:
            importlib.import_module(f"pipeline.{found.name}")
    for name, module in [*sys.modules.items()]:
        if name.partition(".")[0] == "pipeline" and hasattr(module, "__path__"):
            module.__path__.append(str(root.joinpath(*name.split("."))))


def _wait_for_a_journal() -> str:
    """Return the folder that stdin names; empty if the stage ends without naming one."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  (takes seconds; there is nothing to deliver yet)

    folder = os.fsdecode(sys.stdin.buffer.read())
    if folder:
        log = os.open(Path(folder, "delivery.log"), os.O_WRONLY | os.O_CREAT, 0o666)
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
    return folder


def follow(journal: Journal, root: Path) -> None:
    """Deliver a journal while it is being written, after all older undelivered journals.

    Return when the journal is completely delivered, or when its run has ended and the store fails. While the run is
    active, failures are retried after increasing pauses.
    """
    # An evaluation or a resumed training adds to a run that may itself still wait in an older journal.
    backlog = [older for older in journals(root, store_name(tracking_uri(root), root)) if older.id < journal.id]
    owner = journal.events()[0]["owner"]
    started = time.monotonic()
    seen, ended, pending, pause, next_try = 0, False, False, 1.0, 0.0
    while journal.exists():
        if not ended and processes.is_gone(owner):
            journal.close_if_dead()
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
                journal.record_failure(error)
                if ended:
                    return
                next_try = time.monotonic() + pause
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        if not pending and time.monotonic() - started > SECONDS_BEFORE_IMPORTS:
            import_for_the_model()
        time.sleep(POLL_SECONDS)


def deliver_all(root: Path) -> list[Journal]:
    """Deliver every journal of the current store. Return those that failed; each has its error noted."""
    waiting = journals(root, store_name(tracking_uri(root), root))
    for journal in waiting:
        _try_to_catch_up(journal)
    return [journal for journal in waiting if journal.exists()]


def _try_to_catch_up(journal: Journal) -> None:
    """Deliver a journal that an earlier process left, or note in it why delivery failed."""
    try:
        journal.close_if_dead()
        deliver(journal)
    except Exception as error:
        if journal.exists():  # else another process has just delivered it
            journal.record_failure(error)


def deliver(journal: Journal) -> None:
    """Send the events that the store lacks. Delete the journal if it is complete.

    Raises:
        PipelineError: the store cannot be opened, or an older journal has to be delivered first.
        Exception: any error of the store. Progress is saved, so events already sent are not sent again.
    """
    with journal.lock:
        if not journal.exists():
            journal.remove_lock()
            return
        events, state = journal.events(), journal.state()
        start = events[0]
        _insist_that_what_it_adds_to_is_delivered(journal, start)
        with journal.request_in_flight():
            client, experiment_id = open_store(start["experiment"])
            run, created = _find_or_create(client, experiment_id, journal, start)
        run_id = run.info.run_id
        # If somebody deleted the run, it is created again from the first event.
        position = state["delivered"] if run_id == state["run_id"] else 0
        journal.set_state(run_id=run_id, delivered=position)
        if not created and run.data.tags.get(EVALUATION_TAG) == start["evaluation"]:
            position = len(events)  # the run already has this evaluation
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
    """Raise if an older journal of the same run or training is undelivered: delivering out of order would duplicate it.

    Raises:
        PipelineError: an older journal has to be delivered first.
    """
    fingerprint = start.get("fingerprint")
    for older in journals(journal.folder.parents[1], start["store"]):
        with suppress(FileNotFoundError):  # delivered a moment ago
            same_training = fingerprint is not None and older.fingerprint() == fingerprint
            if older.id < journal.id and (same_training or older.run_journal_id() == journal.run_journal_id()):
                raise PipelineError(f"the training that it belongs to could not be delivered ({older.id})")


def _find_or_create(client: "MlflowClient", experiment_id: str, journal: Journal, start: Event) -> "tuple[Run, bool]":
    """Return a journal's run, and whether it was created from this journal (or the one it resumes), now or earlier.

    An evaluation uses the run of its training, and creates one only if the store has none.
    """
    name = journal.run_journal_id()
    made_before = newest(client, experiment_id, f"tags.{JOURNAL_TAG} = '{name}'")
    if made_before is not None:
        return made_before, True
    trained = find_training(client, experiment_id, start["fingerprint"]) if "fingerprint" in start else None
    if trained is not None:
        return trained, False
    tags = start["tags"] | {JOURNAL_TAG: name, REPOSITORY_TAG: str(journal.folder.parents[1])}
    return client.create_run(experiment_id, start["time"], tags, start["name"]), True


def prepare_delivery() -> "subprocess.Popen[bytes] | None":
    """Start a process that imports mlflow (seconds) while this process works, then waits for `hand_over`.

    It ends by itself if this process ends first. Return None if tracking is off or no process can be started.
    """
    if is_on():
        with suppress(OSError):
            return _start_delivery([], subprocess.PIPE, subprocess.DEVNULL)
    return None


def start_delivery(journal: Journal) -> "subprocess.Popen[bytes]":
    """Start the process that delivers a journal."""
    with (journal.folder / "delivery.log").open("wb") as log:
        return _start_delivery([str(journal.folder)], subprocess.DEVNULL, log)


def _start_delivery(arguments: list[str], stdin: int, log: "IO[bytes] | int") -> "subprocess.Popen[bytes]":
    """Start delivery in a new session, so that signals to this process group do not reach it."""
    # It works in the main repository but with this stage's code, because DVC deletes its temporary folders.
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
    """Send a prepared process the folder of its journal. Return None if there is no such process or it has ended."""
    if delivery is None or delivery.stdin is None:
        return None
    try:
        with delivery.stdin:
            delivery.stdin.write(os.fsencode(journal.folder))
    except BrokenPipeError:
        return None
    return delivery


def wait_for_delivery(journal: Journal, delivery: "subprocess.Popen[bytes]", n_events: int | None) -> str | None:
    """Wait until the first `n_events` of a journal (None: all) are delivered. Return why they are not, else None.

    It waits at most LONGEST_WAIT_SECONDS for local work and for a server that answers, and only briefly for a server
    that does not. Delivery continues without this process.
    """
    started, started_clock = time.monotonic(), time.time()
    later = "the journal keeps the run, and the next run or `make sync` delivers it"
    silent = f"MLflow does not answer; delivery continues in the background (if it fails, {later})"
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
            return f"delivery to MLflow ended early, see {journal.folder}/delivery.log; {later}"
        waited = time.monotonic() - started
        if waited > LONGEST_WAIT_SECONDS or _longest_request(journal, address, started_clock) > patience:
            return silent
        time.sleep(0.05)
    return None


def _longest_request(journal: Journal, address: str, since: float) -> float:
    """Return the age in seconds of the oldest open request of this journal or an older one, counted from `since`."""
    waiting = [other for other in journals(main_root(), address) if other.id <= journal.id]
    asking = [other.state()["request_since"] for other in waiting]
    return max((time.time() - max(asked, since) for asked in asking if asked is not None), default=0.0)


if __name__ == "__main__":
    main()
