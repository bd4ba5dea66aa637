"""`make sweep`: real grids of DVC experiments, on digits with a small network."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.git import experiments
from pipeline.params import load_params
from pipeline.sweep import __main__ as command
from pipeline.sweep import dvc_engine
from pipeline.sweep.grid import make_points
from pipeline.tracking import tags
from pipeline.tracking.store import open_store
from tests.helpers import environment, git, rows, run, small_params, start, wait_until, write_params


@pytest.mark.slow
def test_trials_run_once_in_one_store_and_a_failing_one_stops_none(workspace: Path) -> None:
    """Trials run once with a shared prepare; a failing trial is listed with its log and does not stop the others."""
    grid = ["-S", "model.bottleneck_size=2,3", "-S", "train.seed=0,1", "-S", "train.device=cpu", "--jobs", "2"]
    done = run(workspace, "pipeline.sweep", *grid)
    assert "4 trials, 0 done, 4 to run, 2 at once" in done.stdout
    assert "4 of 4 done; failed: 0" in done.stdout
    found = rows(workspace)
    assert sorted(row.info.run_name for row in found) == [
        f"digits k={k} seed={seed}" for k in (2, 3) for seed in (0, 1)
    ]
    assert {row.data.tags["sweep"] for row in found} == {"bottleneck_size,seed,device=cpu"}
    assert all("test/mse" in row.data.metrics for row in found)
    logs = [path.read_text() for path in (workspace / ".dvc/tmp/sweep").glob("*.log")]
    assert len(logs) == 4
    assert not any("Running stage 'prepare'" in log for log in logs)

    more = ["-S", "model.bottleneck_size=2,3", "-S", "train.device=cuda:99,cpu", "--name", "second"]
    again = run(workspace, "pipeline.sweep", *more, ok=False)
    assert again.returncode == 1
    assert "4 trials, 2 done, 2 to run" in again.stdout
    failed = [line.strip() for line in again.stderr.partition("failed:\n")[2].splitlines()]
    assert [line.partition(": ")[0] for line in failed] == [f"digits k={k} seed=0 device=cuda:99" for k in (2, 3)]
    assert "cuda:99 is not on this machine" in Path(failed[0].partition(": ")[2]).read_text()
    assert len(rows(workspace)) == 4
    tags = {row.info.run_name: row.data.tags["sweep"] for row in rows(workspace)}
    assert tags["digits k=2 seed=0"] == "bottleneck_size,seed,device=cpu | second"
    assert tags["digits k=2 seed=1"] == "bottleneck_size,seed,device=cpu"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_resumes(workspace: Path, number: signal.Signals) -> None:
    """An interruption stops the trial and its run is KILLED; the same command resumes it and runs nothing twice."""
    grid = ["-S", "train.seed=0,1 train.n_epochs=150", "--jobs", "1"]
    process = start(workspace, "pipeline.sweep", *grid)
    assert process.stdout is not None
    start_line = next(line for line in process.stdout if line.startswith("0 of 2 done; running: digits k=2 seed=0"))
    assert "log: .dvc/tmp/sweep/digits-k-2-seed-0-" in start_line  # before any trial ended
    first = next(line for line in process.stdout if line.startswith("digits k="))
    assert first.startswith("digits k=2 seed=0 n_epochs=150: valid MSE")
    wait_until(lambda: "RUNNING" in [row.info.status for row in rows(workspace)])
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=180)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert "trials are done; the same command resumes" in err
    assert "Traceback" not in out + err
    n_done = 1 + out.count(": valid MSE")
    wait_until(lambda: [row.info.status for row in rows(workspace)].count("KILLED") == 1)
    assert not list((workspace / ".dvc/tmp/exps").iterdir())
    again = run(workspace, "pipeline.sweep", *grid)
    assert f"2 trials, {n_done} done, {2 - n_done} to run" in again.stdout
    finished = [row.info.run_name for row in rows(workspace) if row.info.status == "FINISHED"]
    assert sorted(finished) == [f"digits k=2 seed={seed} n_epochs=150" for seed in (0, 1)]


@pytest.mark.slow
def test_an_edit_while_a_sweep_starts_makes_no_false_experiment(workspace: Path) -> None:
    """The experiment and its run have the parameters of the sweep's start, which are also in the experiment's name."""
    lr = load_params().train.lr
    process = start(workspace, "pipeline.sweep", "-S", "train.seed=0")
    wait_until(lambda: "baselines" in str([child.cmdline() for child in psutil.Process(process.pid).children()]))
    write_params(small_params(train__lr=2 * lr))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    (commit,) = experiments().values()
    write_params(small_params(train__lr=lr))
    (point,) = make_points({"train.seed": [0]})
    assert list(experiments()) == [(git(workspace, "rev-parse", "HEAD").strip(), point.experiment)]
    assert dvc_engine.finished([point]) == {point.experiment: commit}
    (row,) = rows(workspace)
    assert float(row.data.params["train.lr"]) == lr
    assert row.data.tags["sweep"] == "seed=0"


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
    points = make_points({"train.seed": [0]})
    of_other_data = make_points({"data.split_seed": [0, 1]})
    stages = "stages: {shared: {cmd: exit 3, params: [data]}, train: {cmd: exit 4, params: [train]}}"
    (workspace / "dvc.yaml").write_text(stages)
    with pytest.raises(PipelineError, match="`dvc repro shared` failed; see the error above"):
        command.prepare(points, workspace)
    assert "exit 3" in capfd.readouterr().err
    command.prepare(of_other_data, workspace)  # the trials share no stage
    command.prepare([], workspace)


@pytest.mark.slow
def test_a_sweep_under_nohup_survives_its_terminal(workspace: Path) -> None:
    """SIGHUP from a closed terminal is ignored under nohup and ends the sweep otherwise."""
    sweep = [sys.executable, "-m", "pipeline.sweep", "-S", "train.n_epochs=150", "-S"]
    for line, code in (
        (["nohup", *sweep, "train.seed=0"], 0),
        ([*sweep, "train.seed=1"], 128 + signal.SIGHUP),
    ):
        process = subprocess.Popen(line, cwd=workspace, env=environment(), stdout=subprocess.DEVNULL)
        wait_until(lambda: "RUNNING" in [row.info.status for row in rows(workspace)])
        process.send_signal(signal.SIGHUP)
        assert process.wait(300) == code
    wait_until(lambda: sorted(row.info.status for row in rows(workspace)) == ["FINISHED", "KILLED"])
