"""Checkpoints: what comes back, what must not, and what a disk can do to them."""

import os
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.core import checkpoint
from pipeline.core.checkpoint import Checkpoint
from tests.helpers import mounted

PARAMS = {"train.seed": 0, "evaluate.manifold_size": 5}
STATE = os.urandom(1_000_000)


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)


@pytest.fixture
def folder(tmp_dir: Path) -> Path:
    return tmp_dir / ".checkpoints"


def saved(folder: Path, name: str = "name") -> Path:
    """Save a state as a training that is stopped then; returns the file."""
    kept = Checkpoint(folder, name, PARAMS)
    with kept.held():
        kept.save(lambda: STATE, "row", is_last=False)
    return folder / f"{name}.state"


def loaded(folder: Path, name: str = "name") -> checkpoint.Saved | None:
    kept = Checkpoint(folder, name, PARAMS)
    with kept.held():
        return kept.load()


def test_a_state_comes_back_to_the_bit(folder: Path) -> None:
    """With the row."""
    saved(folder)
    back = loaded(folder)
    assert back is not None
    assert back.content == STATE
    assert back.run == "row"
    assert not back.is_finished
    assert loaded(folder, "another name") is None


def test_with_other_parameters_of_evaluate_it_goes_on_in_another_row(folder: Path) -> None:
    """They train nothing anew, but MLflow never changes a row's parameters."""
    saved(folder)
    kept = Checkpoint(folder, "name", PARAMS | {"evaluate.manifold_size": 6})
    with kept.held():
        back = kept.load()
    assert back is not None
    assert back.content == STATE
    assert back.run is None


@pytest.mark.parametrize("position", [0, 40, 5000, -1])
def test_a_flipped_bit_is_noticed(folder: Path, position: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it is: told once, and the file is gone."""
    path = saved(folder)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert loaded(folder) is None
    assert f"warning: the checkpoint {path} is damaged and deleted; training starts anew" in capsys.readouterr().err
    assert not path.exists()
    assert loaded(folder) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("length", [0, 31, 32, 1000, -1])
def test_a_cut_off_checkpoint_is_noticed(folder: Path, length: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Even an empty file, as some file systems leave after a crash."""
    path = saved(folder)
    path.write_bytes(path.read_bytes()[:length])
    assert loaded(folder) is None
    assert "damaged" in capsys.readouterr().err


def test_at_most_ten_seconds_or_an_epoch_are_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saves when the end of the next epoch might be later than that; and the last epoch always."""
    now = 0.0
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 10.0)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    for seconds, expected in ((4, [2, 4, 6]), (30, [1, 2, 3, 4, 5, 6]), (1, [6]), (2, [5, 6])):
        now = 0.0
        kept, epochs = Checkpoint(folder, str(seconds), PARAMS), []
        with kept.held():
            for epoch in range(1, 7):
                now += seconds
                before = kept._state.stat().st_mtime_ns if kept._state.exists() else None
                kept.save(lambda: STATE, None, is_last=epoch == 6)
                if kept._state.exists() and kept._state.stat().st_mtime_ns != before:
                    epochs.append(epoch)
        assert epochs == expected, f"epochs of {seconds} s"


def test_two_trainings_of_the_same_do_not_disturb_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second finds nothing, saves nothing and says so; the first keeps what it has."""
    first, second = Checkpoint(folder, "name", PARAMS), Checkpoint(folder, "name", PARAMS)
    with first.held():
        first.save(lambda: STATE, "first", is_last=False)
        with second.held():
            assert second.load() is None
            second.save(lambda: STATE, "second", is_last=True)
            second.finish()
        assert "another process trains exactly this" in capsys.readouterr().err
    back = loaded(folder)
    assert back is not None
    assert back.run == "first"


def test_a_finished_training_leaves_nothing_without_dvc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run by hand, the next training starts anew."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    kept = Checkpoint(folder, "name", PARAMS)
    with kept.held():
        kept.save(lambda: STATE, None, is_last=True)
        kept.finish()
    assert loaded(folder) is None
    assert not list(folder.glob("*.state")) + list(folder.glob("*.finished"))


def test_under_dvc_it_stays_until_dvc_lock_has_the_outs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC stopped before it wrote dvc.lock deletes the outs at its next run: only then they are made again from it."""
    monkeypatch.setenv("DVC_STAGE", "train")
    lock = Path("dvc.lock")
    kept = Checkpoint(folder, "name", PARAMS)
    with kept.held():
        kept.save(lambda: STATE, "row", is_last=True)
        kept.finish()
    for text in (None, "of an earlier run"):
        if text is not None:
            lock.write_text(text)
            os.utime(lock, (0, 0))
        back = loaded(folder)
        assert back is not None
        assert back.is_finished
        assert back.content == STATE
    lock.write_text("written after the training")
    assert loaded(folder) is None
    assert not list(folder.glob("*.finished"))


def test_a_training_that_finished_in_a_temporary_folder_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC records it in that folder's dvc.lock: the repository's own lock, which is older, does not show it."""
    monkeypatch.setenv("DVC_STAGE", "train")
    Path("dvc.lock").write_text("of an earlier run")
    os.utime("dvc.lock", (0, 0))
    temporary = folder.parent / ".dvc/tmp/exps/standalone/tmp1"
    temporary.mkdir(parents=True)
    monkeypatch.chdir(temporary)
    kept = Checkpoint(folder, "name", PARAMS)
    with kept.held():
        kept.save(lambda: STATE, "row", is_last=True)
        kept.finish()
    monkeypatch.chdir(folder.parent)
    assert loaded(folder) is None


def test_other_finished_trainings_go_when_they_are_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once, for DVC may be recording one at this moment in another process; nor one that is in use."""
    monkeypatch.setenv("DVC_STAGE", "train")
    names = ("new", "old", "used")
    for name in names:
        kept = Checkpoint(folder, name, PARAMS)
        with kept.held():
            kept.save(lambda: STATE, None, is_last=True)
            kept.finish()
    for name in names[1:]:
        os.utime(folder / f"{name}.finished", (0, 0))
    with FileLock(folder / "used.lock"), Checkpoint(folder, "mine", PARAMS).held():
        assert sorted(path.name for path in folder.glob("*.finished")) == ["new.finished", "used.finished"]


def test_a_full_disk_costs_the_new_checkpoint_not_the_old_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told once; the one before is whole, and nothing half is left. With space again it goes on saving."""
    size = saved(folder).stat().st_size
    (folder / "name.state").unlink()
    (folder / "name.lock").unlink()
    with mounted(folder, "-t", "tmpfs", "-o", f"size={3 * size // 2 // 1024}k", "tmpfs"):
        kept = Checkpoint(folder, "name", PARAMS)
        with kept.held():
            kept.save(lambda: STATE, "first", is_last=False)
            for _ in range(3):
                kept.save(lambda: STATE, "second", is_last=False)
            error = capsys.readouterr().err
            assert error.count("warning") == 1
            assert "No space left on device" in error
            assert not list(folder.glob("*.new"))
            back = kept.load()
            assert back is not None
            assert back.run == "first"
            subprocess.run(["mount", "-o", f"remount,size={3 * size // 1024}k", str(folder)], check=True)
            kept.save(lambda: STATE, "third", is_last=False)
        back = loaded(folder)
        assert back is not None
        assert back.run == "third"


def test_a_folder_that_cannot_be_written_stops_no_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning says that a stopped training would start anew."""
    folder.write_text("a file where the folder would be")
    kept = Checkpoint(folder, "name", PARAMS)
    with kept.held():
        assert kept.load() is None
        kept.save(lambda: STATE, None, is_last=True)
        kept.finish()
    error = capsys.readouterr().err
    assert error.count("warning: no checkpoint can be kept") == 1
    assert "a stopped training will start anew" in error
