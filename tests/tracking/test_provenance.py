"""The origin that a run records."""

import shutil
from pathlib import Path

import pytest

from pipeline.core import dvcfiles
from pipeline.core.git import experiments, file_at
from pipeline.tracking import provenance
from tests.helpers import PROJECT, git

COMMIT, DIRTY = "mlflow.source.git.commit", "mlflow.source.git.dirty"


@pytest.fixture
def repository(tmp_dir: Path) -> Path:
    """A git repository with dvc.yaml, a committed result and a committed module."""
    shutil.copy(PROJECT / "dvc.yaml", tmp_dir)
    (tmp_dir / "reports").mkdir()
    for name in ("params.yaml", "dvc.lock", "reports/train.json", "module.py"):
        (tmp_dir / name).write_text("committed")
    git(tmp_dir, "init", "-q")
    git(tmp_dir, "add", "-A")
    git(tmp_dir, "commit", "-q", "-m", "first")
    return tmp_dir


def test_a_clean_commit(repository: Path) -> None:
    """A clean workspace gives the tag of its commit, and is not dirty."""
    tags = provenance.tags()
    assert tags[COMMIT] == git(repository, "rev-parse", "HEAD").strip()
    assert tags[DIRTY] == "false"


def test_changes_by_dvc_and_experiments_are_not_dirty(repository: Path) -> None:
    """Changed parameters and dvc.lock, deleted outputs and untracked files do not make a run dirty."""
    (repository / "params.yaml").write_text("changed")
    (repository / "dvc.lock").write_text("changed")
    (repository / "reports/train.json").unlink()
    (repository / "notes.txt").write_text("untracked")
    assert provenance.tags()[DIRTY] == "false"


def test_changed_code_is_dirty(repository: Path) -> None:
    """A tracked file that differs from the commit makes a run dirty, staged or not."""
    (repository / "module.py").write_text("changed")
    assert provenance.tags()[DIRTY] == "true"
    git(repository, "add", "module.py")
    assert provenance.tags()[DIRTY] == "true"


def test_untracked_python_is_dirty(repository: Path) -> None:
    """An untracked Python file makes a run dirty, an ignored one does not."""
    (repository / ".gitignore").write_text("ignored.py\n")
    (repository / "ignored.py").write_text("x = 1\n")
    assert provenance.tags()[DIRTY] == "false"
    (repository / "new module.py").write_text("x = 1\n")
    assert provenance.changed_code() == ["new module.py"]
    assert provenance.tags()[DIRTY] == "true"


def test_the_diff_shows_changed_and_new_code(repository: Path) -> None:
    """The diff has changed and new code but no results, is empty for a clean commit, and states if it is cut."""
    assert provenance.diff_of_code() == ""
    (repository / "params.yaml").write_text("changed")
    (repository / "module.py").write_text("changed\n")
    (repository / "new.py").write_text("x = 1\n")
    (repository / "é.py").write_text("y = 2\n")
    diff = provenance.diff_of_code()
    assert "-committed" in diff
    assert "+changed" in diff
    assert "+++ b/new.py" in diff
    assert "+y = 2" in diff
    assert "params.yaml" not in diff
    (repository / "new.py").write_text("x = 1\n" * 50_000)
    assert provenance.diff_of_code().endswith("x = 1\n(cut off: it is longer)\n")
    assert len(provenance.diff_of_code()) < provenance.LARGEST_DIFF + 100


def test_a_users_own_settings_of_git_do_not_change_the_diff(repository: Path) -> None:
    """External diff programs and colours in a user's git configuration do not change the diff."""
    git(repository, "config", "diff.external", "echo shown by another program #")
    git(repository, "config", "color.ui", "always")
    (repository / "module.py").write_text("changed\n")
    (repository / "new.py").write_text("x = 1\n")
    lines = provenance.diff_of_code().splitlines()
    assert {"-committed", "+changed", "+x = 1"} <= set(lines)


def test_the_diff_holds_no_secret(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The diff has no secret, whether recognised by its form or from the environment."""
    monkeypatch.setenv("DEPLOY_TOKEN", "plain word")
    (repository / "module.py").write_text('password = "hunter2hunter2"\nx = "plain word"\ny = 1\n')
    diff = provenance.diff_of_code()
    assert "hunter2" not in diff
    assert "plain word" not in diff
    assert "+y = 1" in diff


def test_experiments_are_found_by_name(repository: Path) -> None:
    """Experiments are found under refs/exps/<2>/<38>/, and DVC's other refs are ignored."""
    commit = git(repository, "rev-parse", "HEAD").strip()
    git(repository, "update-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/tangy-keys", commit)
    git(repository, "update-ref", "refs/exps/exec/EXEC_HEAD", commit)
    assert experiments() == {(commit, "tangy-keys"): commit}
    assert file_at(commit, "module.py") == "committed\n"
    assert file_at(commit, "nothing") is None


def test_the_dvc_experiment(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `dvc exp run` the tags have the experiment's name and baseline."""
    monkeypatch.setenv("DVC_EXP_NAME", "tangy-keys")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    tags = provenance.tags()
    assert (tags["dvc.experiment"], tags["dvc.baseline"]) == ("tangy-keys", "abc")


def test_numbers_of_a_commits_lock_are_as_dvc_wrote_them(repository: Path) -> None:
    """A commit's dvc.lock is read with 1e-05 as a number; plain PyYAML would read text."""
    (repository / "dvc.lock").write_text("stages: {train: {params: {params.yaml: {train: {lr: 1e-05}}}}}\n")
    git(repository, "add", "dvc.lock")
    git(repository, "commit", "-q", "-m", "small rate")
    lock = dvcfiles.lock_at(git(repository, "rev-parse", "HEAD").strip())
    assert lock["stages"]["train"]["params"]["params.yaml"]["train"]["lr"] == 1e-05


def test_the_user_is_the_login_name(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user tag is the login name, not the account on a tracking server; a nameless user has no tag."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "account")
    monkeypatch.setenv("LOGNAME", "bob")
    assert provenance.tags()["mlflow.user"] == "bob"

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert "mlflow.user" not in provenance.tags()


def test_without_git_there_are_fewer_tags(tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a git repository some tags are missing, and nothing fails."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_dir.parent))
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    assert COMMIT not in provenance.tags()
