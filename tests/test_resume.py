"""Stop and resume trainings under DVC, with real kills and real disks, and compare every byte."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.autoencoder.trainer import STATE_TYPES
from pipeline.core import checkpoint, dvcfiles
from pipeline.core.dvc_cli import repair_truncated_locks
from pipeline.core.repository import CHECKPOINTS
from pipeline.tracking import delivery
from pipeline.tracking.journal import journals
from pipeline.tracking.training import unpack
from tests.helpers import (
    copy_project,
    environment,
    git,
    mounted,
    rows,
    run,
    save_every_epoch,
    set_params,
    small_params,
    wait_until,
    working_in,
    write_params,
)

N_EPOCHS = 50
MODEL = "models/autoencoder.safetensors"

pytestmark = pytest.mark.slow


def prepared(folder: Path) -> Path:
    """Return a copy of the project, before its first run, that saves a checkpoint after every epoch."""
    copy_project(folder)
    write_params(small_params(train__n_epochs=N_EPOCHS), folder)
    save_every_epoch(folder)
    git(folder, "commit", "-q", "-a", "-m", "small")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return {path: content} after an uninterrupted training and all later stages."""
    folder = prepared(tmp_path_factory.mktemp("reference") / "repository")
    run(folder, "dvc", "repro", PIPELINE_TRACKING="0")
    return results(folder)


def results(folder: Path) -> dict[str, bytes]:
    """Return {path: content} of everything that a run writes: all outputs, dvc.lock, the environment."""
    files = [path for name in ("data", "models", "reports") for path in (folder / name).rglob("*") if path.is_file()]
    files = [path for path in files if path.name != ".gitignore" and "raw" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*files, folder / "dvc.lock"]}


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return sorted(path for path in one | other if one.get(path) != other.get(path))


def test_two_clones_in_different_folders_give_identical_outputs(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Outputs do not depend on path, time or tracking, and `dvc repro --force` changes nothing in git."""
    folder = prepared(tmp_path / "another place with spaces")
    run(folder, "dvc", "repro")
    assert differing(results(folder), undisturbed) == []
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "results")
    time.sleep(1)
    run(folder, "dvc", "repro", "--force")
    assert git(folder, "status", "--porcelain") == ""
    assert differing(results(folder), undisturbed) == []


@pytest.mark.alone
def test_killed_at_any_moment_a_training_resumes_to_the_same_bytes(
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """Each training ends with the bytes of an uninterrupted one, in one run with each epoch once.

    Trainings are killed with SIGKILL at KILLS moments (10 unless set), a quarter of them while a checkpoint is written.
    """
    seed = int(os.environ.get("KILL_SEED") or time.time())
    print(f"KILL_SEED={seed}")
    record_property("seed", seed)
    choose = random.Random(seed)
    here = prepared(tmp_path / "killed")
    run(here, "dvc", "repro", "baselines")
    monkeypatch.chdir(here)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    n_trainings = max(2, int(os.environ.get("KILLS", "10")) // 5)
    moments = (["saving", "training", "saving", "start-up"] * n_trainings)[: 4 * n_trainings]
    choose.shuffle(moments)
    n_saving = n_gone_on = n_from_nothing = 0
    for training in range(n_trainings):
        tracking = "01"[training % 2]  # tracking takes most of the time
        for moment in [*moments[4 * training : 4 * training + 4], "ending"]:
            n_from_nothing += tracking == "1" and saved_epochs(here) == 0
            n_saving += kill_once(here, moment, choose, tracking)
        output = run(here, "dvc", "repro", PIPELINE_TRACKING=tracking).stdout
        n_gone_on += "resuming after epoch" in output
        assert differing(results(here), undisturbed) == []
        if tracking == "1":
            wait_until(lambda: delivery.deliver_all(here) == [])
            statuses, n_finished = [row.info.status for row in rows(here)], training // 2 + 1
            assert statuses.count("FINISHED") == n_finished
            assert statuses.count("KILLED") == len(statuses) - n_finished <= n_from_nothing - n_finished
            check_row(here)
        forget_training(here)
    assert n_saving >= 5 * n_trainings // 4
    assert n_gone_on >= 1


def kill_once(here: Path, moment: str, choose: random.Random, tracking: str = "1") -> bool:
    """Kill `dvc repro train` and its stage at such a moment; return whether a checkpoint was being written."""
    before = saved_epochs(here)
    started, log = time.time(), here.with_name("log")
    with log.open("w") as output:
        dvc = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", "train"],
            cwd=here,
            env=environment(PIPELINE_TRACKING=tracking),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def has_begun() -> bool:
        return " parameters on " in log.read_text()

    def has(suffix: str) -> bool:
        """Return whether this training has a complete (`state`) or half-written (`new`) checkpoint."""
        try:
            return any(path.stat().st_mtime > started for path in (here / CHECKPOINTS).glob(f"*.{suffix}"))
        except FileNotFoundError:  # renamed a moment ago
            return False

    def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while dvc.poll() is None and not condition() and time.monotonic() < deadline:
            time.sleep(0.001)

    if moment == "start-up":
        time.sleep(choose.uniform(0, 5))
    elif moment == "training":
        until(has_begun)
        until(lambda: has("state")) if choose.random() < 0.7 else None
        time.sleep(choose.uniform(0, 1))
    elif moment == "saving":
        until(lambda: has("state")) if choose.random() < 0.7 else None
        time.sleep(choose.uniform(0, 0.5))
        until(lambda: has("new"))
        time.sleep(choose.uniform(0, 0.005))
    else:
        until((here / MODEL).exists)
        time.sleep(choose.uniform(0, 0.5))
    assert dvc.poll() is None, log.read_text()
    os.killpg(dvc.pid, signal.SIGKILL)
    dvc.wait()
    repair_truncated_locks(here)
    was_saving = has("new")
    print(f"{moment}: {before} epochs before, {saved_epochs(here)} after{', while saving' * was_saving}", flush=True)
    # The output after the training's first line. The kill may come right after that line.
    said = log.read_text().partition(" parameters on ")[2].partition("\n")[2]
    if before and said:
        assert f"resuming after epoch {before} of {N_EPOCHS}" in said
    return was_saving


def saved_epochs(here: Path) -> int:
    """Return the number of epochs in the checkpoint; 0 without one, or if dvc.lock already has its training."""
    recorded = (here / "dvc.lock").stat().st_mtime
    finished = [path for path in (here / CHECKPOINTS).glob("*.finished") if path.stat().st_mtime > recorded]
    for path in [*(here / CHECKPOINTS).glob("*.state"), *finished]:
        content = path.read_bytes()[checkpoint.DIGEST_BYTES :].partition(b"\n")[2]
        return len(unpack(content, STATE_TYPES)[1])
    return 0


def check_row(here: Path) -> None:
    """Assert that the newest run is finished and complete, with each epoch once, in order."""
    row = rows(here)[0]
    assert row.info.status == "FINISHED"
    assert "test/mse" in row.data.metrics
    history = MlflowClient(f"sqlite:///{here}/mlflow.db").get_metric_history(row.info.run_id, "valid/mse")
    assert [point.step for point in history] == list(range(1, N_EPOCHS + 1))


def forget_training(here: Path) -> None:
    """Delete the weights, also from DVC's cache, so that DVC must train again."""
    md5 = dvcfiles.md5s([MODEL])[MODEL]
    (here / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    (here / MODEL).unlink()


def test_a_resumed_training_is_running_again(toy_workspace: Path) -> None:
    """One run is KILLED by SIGTERM, RUNNING after the training resumes, and finally FINISHED."""
    here = toy_workspace
    set_params(here, train__n_epochs=N_EPOCHS, train__pause=0.1)
    save_every_epoch(here)
    run(here, "dvc", "repro", "baseline")
    statuses, ids = [], set()
    for is_last in (False, True):
        dvc = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=here,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(lambda: journals(here))
        if not is_last:
            wait_until(lambda: list((here / CHECKPOINTS).glob("*.state")))
        (stage,) = working_in(here, "pipeline.train")
        stage.suspend()  # or it might end before delivery, which has lower priority, has created the run
        wait_until(lambda: rows(here) and rows(here)[0].info.status == "RUNNING")
        statuses.append("RUNNING")
        if not is_last:
            os.killpg(dvc.pid, signal.SIGTERM)
        stage.resume()
        dvc.wait()
        wait_until(lambda: not journals(here))
        (row,) = rows(here)
        statuses.append(row.info.status)
        ids.add(row.info.run_id)
    assert statuses == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]
    assert len(ids) == 1
    check_row(here)


def test_a_training_after_the_same_one_in_a_temporary_folder_trains(toy_workspace: Path) -> None:
    """`dvc exp run --temp` and then `dvc repro --force` give two whole trainings, each with its own finished run."""
    here = toy_workspace
    run(here, "dvc", "repro", "prepare")
    run(here, "dvc", "exp", "run", "--temp", "train")
    wait_until(lambda: not journals(here))
    (first,) = rows(here)
    done = run(here, "dvc", "repro", "--force", "--single-item", "train")
    assert "resuming after" not in done.stdout
    wait_until(lambda: not journals(here))
    second, same = rows(here)
    assert second.info.status == "FINISHED"
    assert (same.info.run_id, same.info.end_time) == (first.info.run_id, first.info.end_time)


@pytest.mark.alone
def test_a_damaged_checkpoint_restarts_training(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Under DVC a damaged checkpoint is reported and deleted, and training from the start gives the same bytes."""
    here = prepared(tmp_path / "damaged")
    run(here, "dvc", "repro", "baselines")
    kill_once(here, "training", random.Random(1))
    (saved,) = (here / CHECKPOINTS).glob("*.state")
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 4
    saved.write_bytes(content)
    done = run(here, "dvc", "repro", PIPELINE_TRACKING="0")
    assert "is damaged and deleted; training starts from scratch" in done.stderr
    assert "resuming after" not in done.stdout
    assert differing(results(here), undisturbed) == []


@pytest.fixture
def committed(project: Path, tmp_path: Path) -> Path:
    """Return a project with committed results and a stale training that would write the same bytes."""
    here = shutil.copytree(project, tmp_path / "disk", symlinks=True)
    git(here, "add", "-A")
    git(here, "commit", "-q", "-m", "results")
    with (here / "pipeline/autoencoder/trainer.py").open("a") as file:
        file.write("# stale\n")
    return here


def fails_in_one_line(here: Path, reason: str) -> None:
    """Assert that `dvc repro` fails to write the weights, and prints why and how to restore the last results."""
    done = run(here, "dvc", "repro", ok=False)
    assert done.returncode != 0
    assert f"error: {MODEL} cannot be written: {reason}" in done.stderr
    assert "git restore params.yaml dvc.lock reports && dvc checkout" in done.stderr
    assert "Traceback" not in done.stderr


def bring_back(here: Path) -> None:
    """Run the commands that the message names."""
    git(here, "restore", "params.yaml", "dvc.lock", "reports")
    run(here, "dvc", "checkout")


def test_a_full_disk_loses_no_results(committed: Path) -> None:
    """The error names the file and the restore commands; once there is space, the next run resumes."""
    before = results(committed)
    model = (committed / MODEL).read_bytes()
    with mounted(committed / "models", "-t", "tmpfs", "-o", "size=100k", "tmpfs"):
        fails_in_one_line(committed, "No space left on device; fix this, then run `dvc repro`")
    bring_back(committed)
    assert differing(results(committed), before) == []

    (committed / MODEL).unlink()
    done = run(committed, "dvc", "repro")
    assert "resuming after epoch 2 of 2" in done.stdout
    assert (committed / MODEL).read_bytes() == model


def test_a_read_only_folder_loses_no_results(committed: Path) -> None:
    """The error names the file, and the committed results can be restored."""
    before = results(committed)
    models = committed / "models"
    (models / "autoencoder.safetensors").unlink()
    with mounted(models, "-o", "bind,ro", str(models)):
        fails_in_one_line(committed, "Read-only file system")
    bring_back(committed)
    assert differing(results(committed), before) == []
