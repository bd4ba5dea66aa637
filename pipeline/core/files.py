"""Write the files that stages leave, figures too; read their JSON files and the numbers in them."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pipeline.core.errors import PipelineError


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


def load_json(path: Path, keys: Collection[str]) -> dict[str, Any]:
    """What an earlier stage wrote, at least these keys.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    damaged = PipelineError(f"{path} is damaged; delete it, then `dvc repro` brings it back")
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; `dvc repro` makes it") from None
    except ValueError:
        raise damaged from None
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        raise damaged
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
