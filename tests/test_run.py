"""Test `make run` with and without a mirror."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from pipeline.core.dvc_cli import dvc
from pipeline.core.errors import PipelineError
from pipeline.params import load_params
from pipeline.run import print_changes
from tests.helpers import PROJECT, copy_project, edited, git, run, set_params, small_params, write_params
from tests.mirror import Mirror

HEADLINE = ["valid.best_mse", "test.mse"]


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """Return a committed copy of the project with a small network, on MNIST. Nothing has run in it."""
    project = copy_project(tmp_path / "fresh")
    write_params(small_params(data__dataset="mnist"), project)
    git(project, "commit", "-q", "-a", "-m", "small")
    return project


def test_without_a_mirror_it_runs_on_digits_and_reports_it(fresh: Path) -> None:
    """The changed data set is visible in git and DVC, and the output ends with results, a note and the way back."""
    with Mirror() as gone:
        url = gone.url
    done = run(fresh, "pipeline.run", MNIST_MIRROR=url)
    assert "MNIST cannot be reached" in done.stdout
    assert "-  dataset: mnist\n+  dataset: digits" in git(fresh, "diff", "params.yaml")
    assert "data.dataset" in run(fresh, "dvc", "params", "diff").stdout
    assert json.loads((fresh / "reports/evaluate.json").read_text())["dataset"] == "digits"

    again = run(fresh, "pipeline.run", MNIST_MIRROR=url)
    assert "Running stage" not in again.stdout
    for printed in (done.stdout, again.stdout):
        assert "Test MSE" in printed
        assert "to go back to MNIST: dvc exp run -S data.dataset=mnist" in printed


def test_dvcs_hints_are_left_out(tmp_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """DVC's hints, which name only dvc.lock and a push even without a remote, are left out; its progress is shown."""
    git(tmp_dir, "init", "-q")
    run(tmp_dir, "dvc", "init", "-q")
    Path("dvc.yaml").write_text("stages: {write: {cmd: echo text > file, outs: [file]}}")
    dvc("repro")
    printed = capfd.readouterr()
    assert "Running stage 'write'" in printed.out
    for hint in ("dvc push", "git add", "autostage"):
        assert hint not in printed.out + printed.err
    Path("dvc.yaml").write_text("stages: {write: {cmd: exit 3, outs: [file]}}")
    with pytest.raises(PipelineError, match="`dvc repro` failed"):
        dvc("repro")
    assert "failed to run: exit 3" in capfd.readouterr().err


@pytest.mark.slow
def test_it_ends_with_what_changed_and_the_command_that_commits_it(toy: Path, tmp_path: Path) -> None:
    """The output ends with parameters, headline metrics and one `git add`, whose commit holds results of its code."""
    here = shutil.copytree(toy, tmp_path / "changed", symlinks=True)
    set_params(here, train__lr=0.2)
    printed = run(here, "pipeline.run").stdout
    changed = printed.split("Changed since the last commit\n")[1].splitlines()
    assert changed[0].split() == ["train.lr", "0.1", "→", "0.2"]
    assert [line.split()[0] for line in changed[1:3]] == ["valid.best_mse", "test.mse"]
    _, command = changed[3].split(": ")
    assert command == "git add params.yaml dvc.lock reports"
    git(here, *command.split()[1:])
    git(here, "commit", "-q", "-m", "as it says")
    assert run(here, "pipeline.review", "HEAD~1", "HEAD", ok=False).returncode != 3
    assert "Changed since" not in run(here, "pipeline.run").stdout


def test_changed_code_belongs_to_the_commit_too(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The `git add` names the changed modules; the output notes if no parameter and no headline metric changed."""
    print_changes(load_params(), HEADLINE)
    assert capsys.readouterr().out == "\nNo result differs from the last commit.\n"
    history, module = Path("reports/history.csv"), Path("pipeline/autoencoder/pca.py")
    with edited(history, "epoch,", "epoch,,"), edited(module, '"""\n', '"""\n\n# changed'):
        print_changes(load_params(), HEADLINE)
    printed = capsys.readouterr().out
    assert "Changed since the last commit: no parameter and no headline metric" in printed
    assert "git add params.yaml dvc.lock reports pipeline/autoencoder/pca.py\n" in printed
    with edited(Path("params.yaml"), "lr: 0.005", "lr: 0.01"):
        print_changes(load_params(), HEADLINE)
    assert capsys.readouterr().out.splitlines()[2].split() == ["train.lr", "0.005", "→", "0.01"]


def test_a_comparison_does_not_belong_to_the_commit(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The `git add` leaves out what `make compare` wrote, because it replaces the committed study."""
    with edited(Path("reports/compare/table.md"), "|", "||"):
        print_changes(load_params(), HEADLINE)
        assert capsys.readouterr().out == "\nNo result differs from the last commit.\n"
        with edited(Path("reports/history.csv"), "epoch,", "epoch,,"):
            print_changes(load_params(), HEADLINE)
            command = capsys.readouterr().out.splitlines()[-1].partition(": ")[2]
            git(workspace, *shlex.split(command)[1:])
    assert git(workspace, "diff", "--staged", "--name-only").split() == ["reports/history.csv"]


def test_an_unreadable_last_commit_does_not_stop_it(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If the last commit has conflict markers, everything in the workspace counts as new."""
    with (
        edited(Path("params.yaml"), "data:", "<<<<<<< HEAD\ndata:"),
        edited(Path("reports/evaluate.json"), "{", "<<< {"),
    ):
        git(workspace, "commit", "-q", "-a", "-m", "conflicts")
    print_changes(load_params(), HEADLINE)
    printed = capsys.readouterr().out
    assert "train.lr" in printed
    assert "test.mse               None →" in printed


def test_a_mirror_with_bad_content_is_an_error_not_a_change_of_data(fresh: Path, mirror: Mirror) -> None:
    """If a mirror answers, MNIST is not replaced, and bad content stays an error."""
    mirror.fault = "html"
    done = run(fresh, "pipeline.run", ok=False, MNIST_MIRROR=mirror.url)
    assert done.returncode == 2
    assert "no mirror has a genuine train-images-idx3-ubyte" in done.stderr
    assert "error: `dvc repro` failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert git(fresh, "diff", "params.yaml") == ""


def test_bad_parameters_stop_it_before_dvc_deletes_anything(project: Path) -> None:
    """The parameters are checked first, so the last results are not deleted."""
    with edited(project / "params.yaml", "lr: 0.005", "lr: 0"):
        done = run(project, "pipeline.run", ok=False)
    assert done.returncode == 2
    assert "train.lr" in done.stderr
    assert (project / "models/autoencoder.safetensors").is_file()


def test_params_yaml_survives_dvcs_rewriting(tmp_path: Path) -> None:
    """When `dvc exp run -S` rewrites the committed params.yaml, only the changed line differs."""
    project = copy_project(tmp_path / "fresh")
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(str(project / "params.yaml")) as values:
        values["data"]["dataset"] = "digits"
    changed = (project / "params.yaml").read_text()
    assert changed == (PROJECT / "params.yaml").read_text().replace("dataset: mnist", "dataset: digits")
