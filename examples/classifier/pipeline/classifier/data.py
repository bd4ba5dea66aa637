"""Prepared tables: features and classes in one safetensors file for each of train, valid and test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from pipeline.core.files import reading, write_out


@dataclass(frozen=True)
class Table:
    """Features, float32 [n, d], as measured; and classes, int64 [n], from 0."""

    features: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.features)


def save_table(table: Table, path: Path) -> None:
    write_out(path, save({"features": table.features, "classes": table.classes}))


def load_table(path: Path) -> Table:
    """Read a table that `save_table` wrote.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    with reading(path, "prepare"):
        return Table(**load_file(path))
