"""Write the files that stages leave, figures too; read their JSON files and the numbers in them."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline.core.errors import PipelineError

# What reading a file raises if it is not what was written.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


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


@contextmanager
def reading(path: Path, stage: str = "") -> Iterator[None]:
    """Inside the block an out of an earlier stage is read and checked. What goes wrong there is the file's fault.

    Raises:
        PipelineError: the file is missing, or the block raised one of DAMAGE. The message names the stage, if given.
    """
    command = f"dvc repro {stage}".strip()
    if not path.is_file():
        raise PipelineError(f"{path} is missing; `{command}` makes it")
    try:
        yield
    except DAMAGE:
        raise PipelineError(f"{path} is damaged; delete it, then `{command}` brings it back") from None


def load_json(path: Path, keys: Collection[str]) -> dict[str, Any]:
    """What an earlier stage wrote, at least these keys.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    with reading(path):
        content = json.loads(path.read_text())
        if not content.keys() >= set(keys):
            raise ValueError
    return content


def flat(values: Any, separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """{'test.mse': 0.04} of {'test': {'mse': 0.04}}; a list's items are named by their number."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= flat(value, separator, f"{prefix}{separator}{key}" if prefix else str(key))
    return found


def numbers(values: Any, separator: str = "/") -> dict[str, float]:
    """`flat`, without what is no number."""
    leaves = flat(values, separator).items()
    return {name: value for name, value in leaves if isinstance(value, int | float) and not isinstance(value, bool)}
