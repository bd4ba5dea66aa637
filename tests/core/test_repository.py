"""Finding the main repository's root."""

from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.repository import main_root


def test_the_root_is_found_from_a_subfolder(tmp_path: Path) -> None:
    """From any folder inside a repository, the root is the folder with `.dvc`."""
    (tmp_path / "re po/.dvc").mkdir(parents=True)
    (tmp_path / "re po/a/b").mkdir(parents=True)
    assert main_root(tmp_path / "re po/a/b") == tmp_path / "re po"
    assert main_root(tmp_path / "re po") == tmp_path / "re po"


@pytest.mark.parametrize("place", ["tmpabc", "standalone/tmpabc"])
def test_a_temporary_experiment_belongs_to_the_main_repository(tmp_path: Path, place: str) -> None:
    """In the copies of `--queue` and `--temp`, which have their own `.dvc`, the root is the main repository."""
    copy = tmp_path / ".dvc/tmp/exps" / place
    (copy / ".dvc").mkdir(parents=True)
    (copy / "sub").mkdir()
    assert main_root(copy) == tmp_path
    assert main_root(copy / "sub") == tmp_path


def test_a_stale_dvc_root_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exported DVC_ROOT of another repository is ignored."""
    (tmp_path / "here/.dvc").mkdir(parents=True)
    (tmp_path / "other/.dvc").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "other"))
    assert main_root(tmp_path / "here") == tmp_path / "here"


def test_outside_a_repository(tmp_path: Path) -> None:
    """Outside a repository the error says what to do."""
    with pytest.raises(PipelineError, match="run this in a clone"):
        main_root(tmp_path)
