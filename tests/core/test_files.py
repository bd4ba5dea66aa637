"""Writing outs: whole, in folders that need not be there, and errors that name the file."""

import os
import stat
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import flat, numbers, write_out


def test_text_and_bytes_and_a_new_folder(tmp_dir: Path) -> None:
    """Text is UTF-8 with its line ends as they are, on every system."""
    write_out(Path("new/folder/text.json"), "ä\n")
    write_out(Path("new/folder/bytes"), b"\x00\r\n")
    assert Path("new/folder/text.json").read_bytes() == b"\xc3\xa4\n"
    assert Path("new/folder/bytes").read_bytes() == b"\x00\r\n"


def test_a_full_disk_is_one_line_that_names_the_file(tmp_dir: Path) -> None:
    """A real ENOSPC, and what to do."""
    Path("full").symlink_to("/dev/full")
    with pytest.raises(PipelineError, match=r"^full cannot be written: No space left on device; .*`dvc repro`$"):
        write_out(Path("full"), "content")


def test_a_read_only_folder_is_one_line_that_names_the_file(tmp_dir: Path) -> None:
    """Where the user is root, for whom no folder is read-only, a file in the folder's place."""
    folder = Path("reports")
    if os.getuid() == 0:
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PipelineError, match=r"^reports/data\.json cannot be written: "):
        write_out(folder / "data.json", "content")


def test_numbers_under_their_nested_names() -> None:
    """Texts and booleans are no numbers; a list's items are named by their place."""
    values = {"a": {"b": 1, "c": "text"}, "d": True, "e": 0.5, "f": [2, {"g": 3}]}
    assert flat(values) == {"a.b": 1, "a.c": "text", "d": True, "e": 0.5, "f.0": 2, "f.1.g": 3}
    assert numbers(values) == {"a/b": 1, "e": 0.5, "f/0": 2, "f/1/g": 3}
