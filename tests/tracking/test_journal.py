"""Journals: what a kill leaves of one can be read, and says the truth."""

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
    """Inside its block nobody sees it; after an error nothing of it is left."""
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
    """Delivery keeps the order; the journals of another store are not touched."""
    made = [begin(START), begin(START | {"store": "there"}), begin(START)]
    assert [journal.id for journal in journals(tmp_dir)] == [journal.id for journal in made]
    assert [journal.id for journal in journals(tmp_dir, "there")] == [made[1].id]


def test_an_event_has_the_time_at_which_it_was_written(tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it brings its own."""
    monkeypatch.setattr("pipeline.tracking.journal.now_ms", lambda: 1000)
    journal = begin(START)
    journal.append({"kind": "end", "time": 7})
    assert [event["time"] for event in journal.events()] == [1000, 7]


def test_a_torn_line_is_passed_over(tmp_dir: Path) -> None:
    """A kill in the middle of a line costs that line alone, and what is written after it counts."""
    journal = begin(GONE)
    journal.append({"kind": "metrics", "values": {"a": 1}, "step": 1})
    whole = (journal.folder / "events.jsonl").read_bytes()
    for length in range(1, 40, 13):
        (journal.folder / "events.jsonl").write_bytes(whole + whole[:length])
        assert [event["kind"] for event in journal.events()] == ["start", "metrics"]
    journal.settle()
    assert [event["kind"] for event in journal.events()] == ["start", "metrics", "end"]


def test_a_damaged_journal_does_not_hide_the_others(tmp_dir: Path) -> None:
    """One without a first line tells nothing, and stands in nobody's way."""
    for content in (b"", b'{"kind": "sta'):
        (begin(START).folder / "events.jsonl").write_bytes(content)
    whole = begin(START)
    assert [journal.id for journal in journals(tmp_dir)] == [whole.id]


def test_the_journal_of_a_process_that_is_gone_ends_as_killed(tmp_dir: Path) -> None:
    """At the time of its last event, once; a living one's is left alone, and so is one that has ended."""
    alive = begin(START)
    alive.settle()
    assert not alive.has_ended()

    gone = begin(GONE)
    gone.append({"kind": "metrics", "time": 5, "values": {}, "step": 1})
    gone.settle()
    gone.settle()
    assert gone.events()[2:] == [{"kind": "end", "time": 5, "status": "KILLED"}]

    finished = begin(GONE)
    finished.append({"kind": "end", "status": "FINISHED"})
    finished.settle()
    assert [event["status"] for event in finished.events()[1:]] == ["FINISHED"]


def test_a_file_is_kept_as_it_was(tmp_dir: Path) -> None:
    """DVC may delete or rewrite the original before it is delivered."""
    path = Path("model")
    path.write_text("first")
    journal = begin(START)
    journal.append_artifact(path, "models")
    path.write_text("second")
    (event,) = journal.events()[1:]
    assert (journal.folder / event["file"]).read_text() == "first"
    assert Path(event["file"]).name == "model"


def test_state_is_replaced_at_once(tmp_dir: Path) -> None:
    """Changing one value keeps the others; a half-written new state is not read."""
    journal = begin(START)
    journal.set_state(run_id="a", delivered=1)
    journal.set_state(delivered=2)
    (journal.folder / "state.json.new").write_text('{"deliv')
    assert journal.state() == {"run_id": "a", "delivered": 2, "last_step": 0, "asking_since": None}


def test_a_request_that_is_out_can_be_seen(tmp_dir: Path) -> None:
    """While the store is asked, and not after it has answered or failed."""
    journal = begin(START)
    with journal.asking():
        assert journal.state()["asking_since"] is not None

    def fail() -> None:
        with journal.asking():
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        fail()
    assert journal.state()["asking_since"] is None


def test_a_removed_journal_leaves_nothing(tmp_dir: Path) -> None:
    """Neither its files nor its lock."""
    journal = begin(START)
    with journal.lock:
        journal.remove()
    assert os.listdir(tmp_dir / FOLDER) == []  # noqa: PTH208


def test_an_errors_one_line_holds_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kind and text on one line, cut, without what the environment or an address keeps secret."""
    monkeypatch.setenv("SOME_TOKEN", "s3cret-token")
    text = one_line(OSError("cannot reach\n http://bob:hunter2@host with s3cret-token " + "x" * 500))
    assert text.startswith("OSError: cannot reach http://[removed]@host with [removed] x")
    assert len(text) == 300
