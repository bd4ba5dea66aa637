"""`make sweep`: real grids of DVC experiments."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipeline.core.errors import PipelineError
from pipeline.core.git import experiments
from pipeline.sweep import __main__ as command
from pipeline.sweep.grid import make_trials
from pipeline.tracking import tags
from pipeline.tracking.store import open_store
from tests.helpers import environment, git, rows, run, save_every_epoch, set_params, start, wait_until


@pytest.mark.slow
def test_trials_run_once_in_one_store_and_a_failing_one_stops_none(toy_workspace: Path) -> None:
    """Trials run once with a shared prepare; a failing trial is listed with its log and does not stop the others."""
    grid = ["-S", "model.degree=2,3", "-S", "train.seed=0,1", "-S", "train.device=cpu", "--jobs", "2"]
    done = run(toy_workspace, "pipeline.sweep", *grid)
    assert "4 trials, 0 done, 4 to run, 2 at once" in done.stdout
    assert "4 of 4 done; failed: 0" in done.stdout
    found = rows(toy_workspace)
    assert sorted(row.info.run_name for row in found) == [f"degree={k} seed={seed}" for k in (2, 3) for seed in (0, 1)]
    assert {row.data.tags["sweep"] for row in found} == {"degree,seed,device=cpu"}
    assert all("test/mse" in row.data.metrics for row in found)
    experiment = MlflowClient(f"sqlite:///{toy_workspace}/mlflow.db").get_experiment_by_name("toy")
    assert experiment is not None
    assert {row.info.experiment_id for row in found} == {experiment.experiment_id}
    logs = [path.read_text() for path in (toy_workspace / ".dvc/tmp/sweep").glob("*.log")]
    assert len(logs) == 4
    assert not any("Running stage 'prepare'" in log for log in logs)

    more = ["-S", "model.degree=2,3", "-S", "train.device=cuda:99,cpu", "--name", "second"]
    again = run(toy_workspace, "pipeline.sweep", *more, ok=False)
    assert again.returncode == 1
    assert "4 trials, 2 done, 2 to run" in again.stdout
    failed = [line.strip() for line in again.stderr.partition("failed:\n")[2].splitlines()]
    names = sorted(line.partition(": ")[0] for line in failed)
    assert names == [f"degree={k} seed=0 device=cuda:99" for k in (2, 3)]
    assert "cuda:99 is not on this machine" in Path(failed[0].partition(": ")[2]).read_text()
    assert len(rows(toy_workspace)) == 4
    tags = {row.info.run_name: row.data.tags["sweep"] for row in rows(toy_workspace)}
    assert tags["degree=2 seed=0"] == "degree,seed,device=cpu | second"
    assert tags["degree=2 seed=1"] == "degree,seed,device=cpu"

    run(toy_workspace, "pipeline.sweep.compare")
    table = (toy_workspace / "reports/compare/table.md").read_text()
    assert "| model.degree | seeds | valid MSE | test MSE | parameters |" in table
    assert "| 2 | 2 |" in table
    assert "the mean's MSE: " in table


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_resumes(toy_workspace: Path, number: signal.Signals) -> None:
    """An interruption stops the trial and its run is KILLED; the same command resumes it and runs nothing twice."""
    save_every_epoch(toy_workspace)
    git(toy_workspace, "commit", "-q", "-a", "-m", "save every epoch")
    grid = ["-S", "train.seed=0,1 train.n_epochs=40 train.pause=0.5", "--jobs", "1"]
    process = start(toy_workspace, "pipeline.sweep", *grid)
    assert process.stdout is not None
    start_line = next(line for line in process.stdout if line.startswith("0 of 2 done; running: degree=2 seed=0"))
    assert "log: .dvc/tmp/sweep/degree-2-seed-0-" in start_line  # before any trial ended
    first = next(line for line in process.stdout if line.startswith("degree="))
    assert first.startswith("degree=2 seed=0 n_epochs=40 pause=0.5: valid MSE")
    wait_until(lambda: "RUNNING" in [row.info.status for row in rows(toy_workspace)])
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=180)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert "trials are done; the same command resumes" in err
    assert "Traceback" not in out + err
    n_done = 1 + out.count(": valid MSE")
    wait_until(lambda: [row.info.status for row in rows(toy_workspace)].count("KILLED") == 1)
    assert not list((toy_workspace / ".dvc/tmp/exps").iterdir())
    again = run(toy_workspace, "pipeline.sweep", *grid)
    assert f"2 trials, {n_done} done, {2 - n_done} to run" in again.stdout
    # The killed run was resumed.
    assert [row.info.status for row in rows(toy_workspace)] == ["FINISHED", "FINISHED"]
    finished = [row.info.run_name for row in rows(toy_workspace)]
    assert sorted(finished) == [f"degree=2 seed={seed} n_epochs=40 pause=0.5" for seed in (0, 1)]


def starts_its_first_stage(pid: int) -> bool:
    """Return whether a sweep runs the stage before its trials."""
    with suppress(psutil.NoSuchProcess):  # a child has just ended
        return "baseline" in str([child.cmdline() for child in psutil.Process(pid).children()])
    return False


@pytest.mark.slow
def test_an_edit_while_a_sweep_starts_makes_no_false_experiment(toy_workspace: Path) -> None:
    """The experiment and its run have the parameters of the sweep's start, and so the sweep counts it as done."""
    process = start(toy_workspace, "pipeline.sweep", "-S", "train.seed=0")
    wait_until(lambda: starts_its_first_stage(process.pid))
    set_params(toy_workspace, train__lr=0.2)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    ((head, name), commit), *others = experiments().items()
    assert others == []
    assert re.fullmatch(r"degree-2-seed-0-[0-9a-f]{16}", name)
    assert head == git(toy_workspace, "rev-parse", "HEAD").strip()
    assert "lr: 0.1\n" in git(toy_workspace, "show", f"{commit}:params.yaml")
    (row,) = rows(toy_workspace)
    assert row.data.params["train.lr"] == "0.1"
    assert row.data.tags["sweep"] == "seed=0"
    for lr, n_done in ((0.1, 1), (0.2, 0)):
        set_params(toy_workspace, train__lr=lr)
        said = start(toy_workspace, "pipeline.sweep", "-S", "train.seed=0")
        assert said.stdout is not None
        assert any(f"1 trials, {n_done} done" in line for line in said.stdout)
        os.killpg(said.pid, signal.SIGINT)
        said.communicate(timeout=180)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # It would be read back as two names and be added at each repetition.
        (["--name", "a | b"], "--name must not contain |, which separates the names of a run's sweeps; got 'a | b'"),
        (["--name", "a |"], "--name must not contain |, which separates the names of a run's sweeps; got 'a |'"),
        (["--jobs", "0"], "--jobs must be 1 or more, got 0"),
        (["--address", "10.0.0.5:6379"], "--address is for a Ray cluster: add --engine ray"),
    ],
)
def test_bad_arguments_fail_with_one_line(workspace: Path, arguments: list[str], message: str) -> None:
    """Bad arguments fail with one line before anything runs."""
    done = run(workspace, "pipeline.sweep", *arguments, ok=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {message}\n"
    assert not (workspace / ".dvc/tmp/sweep").exists()


def test_the_names_of_sweeps_are_read_back_as_they_were_given(store: str) -> None:
    """A run lists each of its sweeps once, however often a sweep is repeated."""
    client, experiment_id = open_store()
    run_id = client.create_run(experiment_id).info.run_id
    for name in ("k=30, 300 epochs", "second", "k=30, 300 epochs", "second"):
        tags.tag_row(client, client.get_run(run_id), name)
    assert tags.sweeps_of(client.get_run(run_id).data.tags) == ["k=30, 300 epochs", "second"]
    assert tags.sweeps_of({}) == []


def test_a_failing_shared_stage_is_shown(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """If a shared stage fails, DVC's own error is shown; without shared stages or trials nothing runs."""
    trials = make_trials({"train.seed": [0]})
    of_other_data = make_trials({"data.split_seed": [0, 1]})
    stages = "stages: {shared: {cmd: exit 3, params: [data]}, train: {cmd: exit 4, params: [train]}}"
    (workspace / "dvc.yaml").write_text(stages)
    with pytest.raises(PipelineError, match="`dvc repro shared` failed; see the error above"):
        command.prepare(trials, workspace)
    assert "exit 3" in capfd.readouterr().err
    command.prepare(of_other_data, workspace)  # the trials share no stage
    command.prepare([], workspace)


@pytest.mark.slow
def test_a_sweep_under_nohup_survives_its_terminal(toy_workspace: Path) -> None:
    """SIGHUP from a closed terminal is ignored under nohup and ends the sweep otherwise."""
    sweep = [sys.executable, "-m", "pipeline.sweep", "-S", "train.pause=0.5", "-S"]
    for line, code in (
        (["nohup", *sweep, "train.seed=0 train.n_epochs=40"], 0),
        ([*sweep, "train.seed=1 train.n_epochs=600"], 128 + signal.SIGHUP),
    ):
        process = subprocess.Popen(line, cwd=toy_workspace, env=environment(), stdout=subprocess.DEVNULL)
        wait_until(lambda: "RUNNING" in [row.info.status for row in rows(toy_workspace)])
        process.send_signal(signal.SIGHUP)
        assert process.wait(300) == code
    wait_until(lambda: sorted(row.info.status for row in rows(toy_workspace)) == ["FINISHED", "KILLED"])
