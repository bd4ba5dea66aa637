"""Prepared splits on disk."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.autoencoder.splits import Split, load_split, save_split
from pipeline.core.errors import PipelineError
from tests.helpers import random_split


def test_a_split_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Loading returns the images and labels that were saved."""
    split = random_split(12)
    save_split(split, tmp_path / "folder/split.safetensors")
    loaded = load_split(tmp_path / "folder/split.safetensors")
    np.testing.assert_array_equal(loaded.images, split.images)
    np.testing.assert_array_equal(loaded.labels, split.labels)


def test_pixels_are_floats_in_0_to_1() -> None:
    """The pixels are float32 [n, 784], and 255 becomes 1."""
    split = random_split(12)
    split.images[0, 0, :2] = (0, 255)
    pixels = split.pixels()
    assert pixels.shape == (12, 784)
    assert pixels.dtype == np.float32
    assert (pixels[0, 0], pixels[0, 1]) == (0, 1)


def test_a_missing_split(tmp_path: Path) -> None:
    """The error for a missing split names the file and the command that makes it."""
    with pytest.raises(PipelineError, match=r"train\.safetensors is missing; `dvc repro prepare`"):
        load_split(tmp_path / "train.safetensors")


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "header", "other tensors", "other shape", "no image", "labels", "types"]
)
def test_a_damaged_split(tmp_path: Path, damage: str) -> None:
    """A file that is cut off, empty or not a split raises an error instead of giving a wrong result."""
    path = tmp_path / "train.safetensors"
    save_split(random_split(12), path)
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-100])
        case "empty":
            path.write_bytes(b"")
        case "header":
            path.write_bytes(b"\xff" * 16 + content[16:])
        case "other tensors":
            save_file({"images": random_split(12).images}, path)
        case "other shape":
            save_file({"images": random_split(12).images, "labels": random_split(11).labels}, path)
        case "no image":
            save_split(random_split(0), path)
        case "labels":
            save_split(Split(random_split(12).images, np.full(12, 10, np.uint8)), path)
        case "types":
            save_split(Split(random_split(12).images, np.zeros(12, np.int64)), path)
    with pytest.raises(PipelineError, match="is damaged"):
        load_split(path)
