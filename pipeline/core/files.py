"""Write the stages' outputs; read their JSON files and the numbers in them."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline.core.errors import PipelineError

# What reading a damaged file can raise.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


def write_out(path: Path, content: bytes | str) -> None:
    """Write a file, and create its folder if it is missing. Readers see the old content or all of the new.

    Raises:
        PipelineError: the file cannot be written (a full disk, a read-only folder); the message names it.
    """
    data = content.encode() if isinstance(content, str) else content
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(data)
        new.replace(path)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise PipelineError(f"{path} cannot be written: {error.strerror}; fix this, then run `dvc repro`") from None


@contextmanager
def reading(path: Path, stage: str = "") -> Iterator[None]:
    """Turn errors of a block that reads an earlier stage's output into an error that names the file.

    Raises:
        PipelineError: the file is missing, may not be read, or the block raised one of DAMAGE. The message names the
            stage, if given.
    """
    command = f"dvc repro {stage}".strip()
    if not path.is_file():
        raise PipelineError(f"{path} is missing; `{command}` creates it")
    try:
        yield
    except PermissionError:
        raise PipelineError(f"{path} cannot be read: permission denied") from None
    except DAMAGE:
        raise PipelineError(f"{path} is damaged; delete it, then `{command}` creates it again") from None


def load_json(path: Path, keys: Collection[str]) -> dict[str, Any]:
    """Read a JSON file that an earlier stage wrote and check that it has at least these keys.

    Raises:
        PipelineError: the file is missing or damaged, or lacks a key.
    """
    with reading(path):
        content = json.loads(path.read_text())
        if not content.keys() >= set(keys):
            raise ValueError
    return content


def flat(values: Any, separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Flatten nested values: {'test': {'mse': 0.04}} becomes {'test.mse': 0.04}; list items are named by index."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else None
    if items is None:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= flat(value, separator, f"{prefix}{separator}{key}" if prefix else str(key))
    return found


def numbers(values: Any, separator: str = "/") -> dict[str, float]:
    """Flatten nested values, and keep only numbers (no booleans)."""
    leaves = flat(values, separator).items()
    return {name: value for name, value in leaves if isinstance(value, int | float) and not isinstance(value, bool)}
