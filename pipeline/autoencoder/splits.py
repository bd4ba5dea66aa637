"""Prepared splits: uint8 images and labels in one safetensors file for each of train, valid and test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from pipeline.core.files import reading, write_out

IMAGE_SHAPE = (28, 28)


@dataclass(frozen=True)
class Split:
    """Images, uint8 [n, 28, 28], where 0 is background and 255 is ink; and labels, uint8 [n], digits 0 to 9."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self) -> np.ndarray:
        """Return the images as float32 [n, 784] in 0…1, as the model and the baselines take them."""
        return np.divide(self.images.reshape(len(self), -1), 255, dtype=np.float32)


def save_split(split: Split, path: Path) -> None:
    """Write a split. The same split gives the same bytes on every machine."""
    write_out(path, save({"images": split.images, "labels": split.labels}))


def load_split(path: Path) -> Split:
    """Read a split that `save_split` wrote.

    Raises:
        PipelineError: the file is missing, damaged or holds something else.
    """
    with reading(path, "prepare"):
        split = Split(**load_file(path))
        n = split.images.shape[0] if split.images.ndim else 0
        if n == 0 or split.images.shape != (n, *IMAGE_SHAPE) or split.labels.shape != (n,):
            raise ValueError
        if split.images.dtype != np.uint8 or split.labels.dtype != np.uint8 or split.labels.max() > 9:
            raise ValueError
    return split
