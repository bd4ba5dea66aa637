"""Checkpoints: saving and loading, when they are deleted, and disk errors."""

import os
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.core import checkpoint
from pipeline.core.checkpoint import Checkpointer
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
    """Save a state as a training that then stops. Return the file."""
    kept = Checkpointer(folder, name, PARAMS)
    with kept.locked():
        kept.save(lambda: STATE, "row", is_last=False)
    return folder / f"{name}.state"


def loaded(folder: Path, name: str = "name") -> checkpoint.Checkpoint | None:
    kept = Checkpointer(folder, name, PARAMS)
    with kept.locked():
        return kept.load()


def test_state_is_restored_exactly(folder: Path) -> None:
    """A saved state and its run are restored exactly, and only under the same name."""
    saved(folder)
    back = loaded(folder)
    assert back is not None
    assert back.content == STATE
    assert back.run == "row"
    assert not back.is_finished
    assert loaded(folder, "another name") is None


def test_other_parameters_of_evaluate_resume_in_a_new_run(folder: Path) -> None:
    """With other parameters of evaluate training resumes, but in a new run: MLflow never changes a run's parameters."""
    saved(folder)
    kept = Checkpointer(folder, "name", PARAMS | {"evaluate.manifold_size": 6})
    with kept.locked():
        back = kept.load()
    assert back is not None
    assert back.content == STATE
    assert back.run is None


@pytest.mark.parametrize("position", [0, 40, 5000, -1])
def test_flipped_bit_is_detected(folder: Path, position: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint with a flipped bit anywhere is reported once and deleted."""
    path = saved(folder)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    assert loaded(folder) is None
    warning = f"warning: the checkpoint {path} is damaged and deleted; training starts from scratch"
    assert warning in capsys.readouterr().err
    assert not path.exists()
    assert loaded(folder) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("length", [0, 31, 32, 1000, -1])
def test_truncated_checkpoint_is_detected(folder: Path, length: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A truncated checkpoint is detected, even an empty file, which some file systems leave after a crash."""
    path = saved(folder)
    path.write_bytes(path.read_bytes()[:length])
    assert loaded(folder) is None
    assert "damaged" in capsys.readouterr().err


def test_at_most_ten_seconds_or_an_epoch_are_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saves if the next epoch would end more than 10 s after the last save, and always after the last epoch."""
    now = 0.0
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 10.0)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now)
    for seconds, expected in ((4, [2, 4, 6]), (30, [1, 2, 3, 4, 5, 6]), (1, [6]), (2, [5, 6])):
        now = 0.0
        kept, epochs = Checkpointer(folder, str(seconds), PARAMS), []
        with kept.locked():
            for epoch in range(1, 7):
                now += seconds
                before = kept._state.stat().st_mtime_ns if kept._state.exists() else None
                kept.save(lambda: STATE, None, is_last=epoch == 6)
                if kept._state.exists() and kept._state.stat().st_mtime_ns != before:
                    epochs.append(epoch)
        assert epochs == expected, f"epochs of {seconds} s"


def test_identical_concurrent_trainings_do_not_interfere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second training loads and saves nothing and prints a warning; the first keeps its checkpoint."""
    first, second = Checkpointer(folder, "name", PARAMS), Checkpointer(folder, "name", PARAMS)
    with first.locked():
        first.save(lambda: STATE, "first", is_last=False)
        with second.locked():
            assert second.load() is None
            second.save(lambda: STATE, "second", is_last=True)
            second.finish()
        assert "another process is running the same training" in capsys.readouterr().err
    back = loaded(folder)
    assert back is not None
    assert back.run == "first"


def test_finished_training_without_dvc_leaves_no_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DVC a finished training leaves no checkpoint, so the next one starts from scratch."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    kept = Checkpointer(folder, "name", PARAMS)
    with kept.locked():
        kept.save(lambda: STATE, None, is_last=True)
        kept.finish()
    assert loaded(folder) is None
    assert not list(folder.glob("*.state")) + list(folder.glob("*.finished"))


def test_under_dvc_checkpoint_is_kept_until_dvc_lock_records_the_outputs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is kept until dvc.lock is newer: if DVC stopped before that, its next run deletes the outputs."""
    monkeypatch.setenv("DVC_STAGE", "train")
    lock = Path("dvc.lock")
    kept = Checkpointer(folder, "name", PARAMS)
    with kept.locked():
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


def test_finished_training_in_temporary_folder_leaves_no_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC records such a training only in the temporary folder's dvc.lock, so its checkpoint is deleted at once."""
    monkeypatch.setenv("DVC_STAGE", "train")
    Path("dvc.lock").write_text("of an earlier run")
    os.utime("dvc.lock", (0, 0))
    temporary = folder.parent / ".dvc/tmp/exps/standalone/tmp1"
    temporary.mkdir(parents=True)
    monkeypatch.chdir(temporary)
    kept = Checkpointer(folder, "name", PARAMS)
    with kept.locked():
        kept.save(lambda: STATE, "row", is_last=True)
        kept.finish()
    monkeypatch.chdir(folder.parent)
    assert loaded(folder) is None


def test_old_checkpoints_of_finished_trainings_are_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New ones are kept, because another process's DVC may not have recorded them yet, and so are those in use."""
    monkeypatch.setenv("DVC_STAGE", "train")
    names = ("new", "old", "used")
    for name in names:
        kept = Checkpointer(folder, name, PARAMS)
        with kept.locked():
            kept.save(lambda: STATE, None, is_last=True)
            kept.finish()
    for name in names[1:]:
        os.utime(folder / f"{name}.finished", (0, 0))
    with FileLock(folder / "used.lock"), Checkpointer(folder, "mine", PARAMS).locked():
        assert sorted(path.name for path in folder.glob("*.finished")) == ["new.finished", "used.finished"]


def test_full_disk_keeps_the_previous_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk prints one warning and keeps the previous checkpoint; with space again, saving works again."""
    size = saved(folder).stat().st_size
    (folder / "name.state").unlink()
    (folder / "name.lock").unlink()
    with mounted(folder, "-t", "tmpfs", "-o", f"size={3 * size // 2 // 1024}k", "tmpfs"):
        kept = Checkpointer(folder, "name", PARAMS)
        with kept.locked():
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


def test_unwritable_folder_does_not_stop_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If the folder cannot be created, one warning says that a stopped training would start from scratch."""
    folder.write_text("a file where the folder would be")
    kept = Checkpointer(folder, "name", PARAMS)
    with kept.locked():
        assert kept.load() is None
        kept.save(lambda: STATE, None, is_last=True)
        kept.finish()
    error = capsys.readouterr().err
    assert error.count("warning: no checkpoint can be kept") == 1
    assert "if this training stops, it starts from scratch" in error
