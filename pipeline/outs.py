"""Writing the files that stages leave."""

from pathlib import Path

from pipeline.errors import PipelineError


def write_out(path: Path, content: bytes | str) -> None:
    """Write a file, and its folder if need be.

    Raises:
        PipelineError: it cannot be written (a full disk, a read-only folder); names the file.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise PipelineError(f"{path} cannot be written: {error.strerror}; put that right, then `dvc repro`") from None
