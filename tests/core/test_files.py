"""Writing outputs: their bytes, missing folders, and errors that name the file."""

import os
import stat
import threading
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import flat, numbers, write_out


def test_text_and_bytes_and_a_new_folder(tmp_dir: Path) -> None:
    """`write_out` creates folders, writes text as UTF-8, and never changes line ends."""
    write_out(Path("new/folder/text.json"), "ä\n")
    write_out(Path("new/folder/bytes"), b"\x00\r\n")
    assert Path("new/folder/text.json").read_bytes() == b"\xc3\xa4\n"
    assert Path("new/folder/bytes").read_bytes() == b"\x00\r\n"


def test_full_disk_fails_with_one_line_that_names_the_file(tmp_dir: Path) -> None:
    """A real ENOSPC fails with one line that names the file and says what to do. The file keeps its old content."""
    write_out(Path("full"), "old")
    Path(".full.new").symlink_to("/dev/full")
    with pytest.raises(PipelineError, match=r"^full cannot be written: No space left on device; .*`dvc repro`$"):
        write_out(Path("full"), "content")
    assert Path("full").read_text() == "old"
    assert list(map(str, Path().iterdir())) == ["full"]


def test_a_reader_never_sees_half_a_file(tmp_dir: Path) -> None:
    """While a file is written again and again, every reader finds a whole content."""
    path = tmp_dir / "file"
    contents = ["a" * 1_000_000, "b" * 1_000_000]
    write_out(path, contents[0])

    def write_often() -> None:
        for content in contents * 50:
            write_out(path, content)

    writer = threading.Thread(target=write_often)
    writer.start()
    try:
        while writer.is_alive():
            assert path.read_text() in contents
    finally:
        writer.join()


def test_read_only_folder_fails_with_one_line_that_names_the_file(tmp_dir: Path) -> None:
    """A folder that cannot be written fails with one line. (As root, who can write everywhere: a file in its place.)"""
    folder = Path("reports")
    if os.getuid() == 0:
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PipelineError, match=r"^reports/data\.json cannot be written: "):
        write_out(folder / "data.json", "content")


def test_numbers_under_their_nested_names() -> None:
    """Nested keys are joined and list items named by index; strings and booleans are not numbers."""
    values = {"a": {"b": 1, "c": "text"}, "d": True, "e": 0.5, "f": [2, {"g": 3}]}
    assert flat(values) == {"a.b": 1, "a.c": "text", "d": True, "e": 0.5, "f.0": 2, "f.1.g": 3}
    assert numbers(values) == {"a/b": 1, "e": 0.5, "f/0": 2, "f/1/g": 3}
