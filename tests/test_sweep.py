"""`make sweep`: a grid of DVC experiments, run for real on digits with a small network."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import sweep
from pipeline.errors import PipelineError
from pipeline.params import load_params
from tests.helpers import copy_project, environment, git, rows, run, small_params, wait_until, write_params


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed copy of the project with a small network, as the working folder; nothing has run in it."""
    folder = copy_project(tmp_path / "workspace")
    write_params(small_params(), folder)
    git(folder, "commit", "-q", "-a", "-m", "small")
    monkeypatch.chdir(folder)
    return folder


def test_the_default_grid_is_six_sizes_times_three_seeds(workspace: Path) -> None:
    """18 points, all sizes of the first seed before the second, with names that read."""
    points = sweep.make_points(sweep.parse_grid(sweep.DEFAULT_GRID))
    assert len({point.experiment for point in points}) == 18
    assert [point.name for point in points[:7]] == [
        *(f"digits k={size} seed=0" for size in (2, 4, 8, 16, 32, 64)),
        "digits k=2 seed=1",
    ]


def test_any_parameter_makes_a_grid(workspace: Path) -> None:
    """Several in one argument, one value or many, numbers, null and lists; what varies is in the name."""
    grid = sweep.parse_grid(
        ["train.lr=1e-3,0.01 train.n_epochs=1", "model.n_layers=null", "model.hidden_sizes=[64,32]"]
    )
    points = sweep.make_points(grid)
    assert [point.name for point in points] == ["digits k=2 seed=0 lr=0.001", "digits k=2 seed=0 lr=0.01"]
    assert points[1].params == load_params(
        changes={"train.lr": 0.01, "train.n_epochs": 1, "model.n_layers": None, "model.hidden_sizes": [64, 32]}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.lr"], "-S wants a parameter and its values, as train.lr=0.001,0.005; got 'train.lr'"),
        (["train.lr=1", "train.lr=2"], "train.lr is given twice"),
        (["train.lr=0.1,-1"], r"train.lr: must be greater than 0, got -1"),
        (["train.rate=1"], r"train.rate: unknown key"),
        (["train.lr=[1"], "is not a list of values"),
    ],
)
def test_a_grid_that_makes_no_sense_is_one_message(workspace: Path, arguments: list[str], message: str) -> None:
    """Before anything runs."""
    with pytest.raises(PipelineError, match=message):
        sweep.make_points(sweep.parse_grid(arguments))


def test_a_point_is_known_by_parameters_and_code(workspace: Path) -> None:
    """Another parameter or another line of code is another point; what no stage reads is not."""
    grid = sweep.parse_grid(["train.seed=0"])
    (before,) = sweep.make_points(grid)
    named_otherwise = sweep.make_points(sweep.parse_grid(["train.seed=0", "train.lr=0.005,0.01"]))[0]
    assert named_otherwise.name == "digits k=2 seed=0 lr=0.005"
    assert sweep.digest(named_otherwise.experiment) == sweep.digest(before.experiment)
    (workspace / "pipeline/sweep.py").write_text("# no stage reads this\n")
    assert sweep.make_points(grid)[0].experiment == before.experiment
    write_params(small_params(train__n_epochs=3))
    (other_params,) = sweep.make_points(grid)
    with (workspace / "pipeline/training.py").open("a") as file:
        file.write("# a stage reads this\n")
    (other_code,) = sweep.make_points(grid)
    assert len({before.experiment, other_params.experiment, other_code.experiment}) == 3


def test_it_says_how_far_it_is(capsys: pytest.CaptureFixture[str], workspace: Path) -> None:
    """Done, running, failed, and the time left after what points took so far and how many run at once."""
    first, second, *_ = sweep.make_points(sweep.parse_grid(sweep.DEFAULT_GRID))
    progress = sweep.Progress(n_points=18, jobs=2, n_done=8)
    progress.on_end(first, "test MSE 0.0338", 60, running=[second])
    assert capsys.readouterr().out == (
        "digits k=2 seed=0: test MSE 0.0338 in 60 s   "
        "(8 of 18 done; running: digits k=4 seed=0; failed: 0; about 5.0 min left)\n"
    )


@pytest.mark.slow
def test_points_run_once_in_one_store_and_a_failing_one_stops_none(workspace: Path) -> None:
    """Two at once, one that cannot run: it is listed with its log. Again: only that one is tried. Prepare runs once."""
    grid = ["-S", "model.bottleneck_size=2,3", "-S", "train.seed=0,1", "-S", "train.device=cpu", "--jobs", "2"]
    done = run(workspace, "pipeline.sweep", *grid)
    assert "4 points, 0 done, 4 to run, 2 at once" in done.stdout
    assert "4 of 4 done; running: none; failed: 0" in done.stdout
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
    assert "4 points, 2 done, 2 to run" in again.stdout
    failed = [line.strip() for line in again.stderr.partition("failed:\n")[2].splitlines()]
    assert [line.partition(": ")[0] for line in failed] == [f"digits k={k} seed=0 device=cuda:99" for k in (2, 3)]
    assert "cuda:99 is not on this machine" in Path(failed[0].partition(": ")[2]).read_text()
    assert len(rows(workspace)) == 4
    tags = {row.info.run_name: row.data.tags["sweep"] for row in rows(workspace)}
    assert tags["digits k=2 seed=0"] == "bottleneck_size,seed,device=cpu | second"
    assert tags["digits k=2 seed=1"] == "bottleneck_size,seed,device=cpu"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_goes_on(workspace: Path, number: signal.Signals) -> None:
    """What ran is stopped, its row KILLED; the same command goes on in that row, runs the rest, and nothing twice."""
    grid = ["-S", "train.seed=0,1 train.n_epochs=300", "--jobs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.sweep", *grid],
        cwd=workspace,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    first = next(line for line in process.stdout if line.startswith("digits k="))
    assert first.startswith("digits k=2 seed=0: test MSE")
    wait_until(lambda: "RUNNING" in [row.info.status for row in rows(workspace)])
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert "points are done, the same command goes on" in err
    assert "Traceback" not in out + err
    n_done = 1 + out.count("test MSE")
    assert [row.info.status for row in rows(workspace)].count("KILLED") == 1
    assert not list((workspace / ".dvc/tmp/exps").iterdir())
    again = run(workspace, "pipeline.sweep", *grid)
    assert f"2 points, {n_done} done, {2 - n_done} to run" in again.stdout
    finished = [row.info.run_name for row in rows(workspace) if row.info.status == "FINISHED"]
    assert sorted(finished) == [f"digits k=2 seed={seed}" for seed in (0, 1)]
