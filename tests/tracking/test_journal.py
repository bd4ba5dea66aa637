"""Journals: after a kill they can be read and are correct."""

import os
from pathlib import Path

import pytest

from pipeline.core import processes
from pipeline.tracking.journal import FOLDER, Event, Journal, journals, one_line

START: Event = {"kind": "start", "store": "here", "owner": processes.identity()}
GONE: Event = {"kind": "start", "store": "here", "owner": processes.identity() | {"process.boot": "another"}}


def begin(start: Event) -> Journal:
    with Journal.create(Path()) as journal:
        journal.append(start)
    return journal


def test_a_journal_appears_whole_or_not_at_all(tmp_dir: Path) -> None:
    """A journal is invisible inside its block, and after an error nothing of it is left."""
    with Journal.create(tmp_dir) as journal:
        journal.append(START)
        assert journals(tmp_dir) == []
    assert [found.id for found in journals(tmp_dir)] == [journal.id]

    def fail() -> None:
        with Journal.create(tmp_dir) as other:
            other.append(START)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in (tmp_dir / FOLDER).iterdir()] == [journal.id]


def test_journals_come_oldest_first_and_by_store(tmp_dir: Path) -> None:
    """`journals` returns the oldest first, and only those of the given store."""
    made = [begin(START), begin(START | {"store": "there"}), begin(START)]
    assert [journal.id for journal in journals(tmp_dir)] == [journal.id for journal in made]
    assert [journal.id for journal in journals(tmp_dir, "there")] == [made[1].id]


def test_an_event_has_the_time_at_which_it_was_written(tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event gets the current time unless it has its own."""
    monkeypatch.setattr("pipeline.tracking.journal.now_ms", lambda: 1000)
    journal = begin(START)
    journal.append({"kind": "end", "time": 7})
    assert [event["time"] for event in journal.events()] == [1000, 7]


def test_truncated_line_is_skipped(tmp_dir: Path) -> None:
    """A truncated last line is skipped, and events appended after it are read."""
    journal = begin(GONE)
    journal.append({"kind": "metrics", "values": {"a": 1}, "step": 1})
    whole = (journal.folder / "events.jsonl").read_bytes()
    for length in range(1, 40, 13):
        (journal.folder / "events.jsonl").write_bytes(whole + whole[:length])
        assert [event["kind"] for event in journal.events()] == ["start", "metrics"]
    journal.close_if_dead()
    assert [event["kind"] for event in journal.events()] == ["start", "metrics", "end"]


def test_a_damaged_journal_does_not_hide_the_others(tmp_dir: Path) -> None:
    """A journal without a readable first event is skipped, and the others are found."""
    for content in (b"", b'{"kind": "sta'):
        (begin(START).folder / "events.jsonl").write_bytes(content)
    whole = begin(START)
    assert [journal.id for journal in journals(tmp_dir)] == [whole.id]


def test_the_journal_of_a_process_that_is_gone_ends_as_killed(tmp_dir: Path) -> None:
    """`close_if_dead` appends KILLED once, at the last event's time, unless the process runs or the run has ended."""
    alive = begin(START)
    alive.close_if_dead()
    assert not alive.has_ended()

    gone = begin(GONE)
    gone.append({"kind": "metrics", "time": 5, "values": {}, "step": 1})
    gone.close_if_dead()
    gone.close_if_dead()
    assert gone.events()[2:] == [{"kind": "end", "time": 5, "status": "KILLED"}]

    finished = begin(GONE)
    finished.append({"kind": "end", "status": "FINISHED"})
    finished.close_if_dead()
    assert [event["status"] for event in finished.events()[1:]] == ["FINISHED"]


def test_a_file_is_kept_as_it_was(tmp_dir: Path) -> None:
    """An artifact keeps its content when the original changes before delivery."""
    path = Path("model")
    path.write_text("first")
    journal = begin(START)
    journal.append_artifact(path, "models")
    path.write_text("second")
    (event,) = journal.events()[1:]
    assert (journal.folder / event["file"]).read_text() == "first"
    assert Path(event["file"]).name == "model"


def test_state_is_replaced_at_once(tmp_dir: Path) -> None:
    """`set_state` keeps the other values, and a truncated new state is not read."""
    journal = begin(START)
    journal.set_state(run_id="a", delivered=1)
    journal.set_state(delivered=2)
    (journal.folder / "state.json.new").write_text('{"deliv')
    assert journal.state() == {"run_id": "a", "delivered": 2, "last_step": 0, "request_since": None}


def test_open_request_is_visible(tmp_dir: Path) -> None:
    """`request_since` is set while a request is open, and None after an answer or an error."""
    journal = begin(START)
    with journal.request_in_flight():
        assert journal.state()["request_since"] is not None

    def fail() -> None:
        with journal.request_in_flight():
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        fail()
    assert journal.state()["request_since"] is None


def test_a_removed_journal_leaves_nothing(tmp_dir: Path) -> None:
    """`remove` deletes the journal's files and its lock."""
    journal = begin(START)
    with journal.lock:
        journal.remove()
    assert os.listdir(tmp_dir / FOLDER) == []  # noqa: PTH208


def test_one_line_of_an_error_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """`one_line` has the error's type and text, truncated, without secrets of the environment or of an address."""
    monkeypatch.setenv("SOME_TOKEN", "s3cret-token")
    text = one_line(OSError("cannot reach\n http://bob:hunter2@host with s3cret-token " + "x" * 500))
    assert text.startswith("OSError: cannot reach http://[removed]@host with [removed] x")
    assert len(text) == 300
