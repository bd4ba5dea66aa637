"""Test the split and the summary."""

import hashlib
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from pipeline import prepare
from pipeline.autoencoder.splits import Split, load_split
from pipeline.core.errors import PipelineError
from tests.helpers import random_split, small_params, write_params


def numbered(n: int) -> Split:
    """Return n distinguishable images: the first two pixels encode the image's number."""
    images = np.zeros((n, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(n) // 256, np.arange(n) % 256
    return Split(images, (np.arange(n) % 10).astype(np.uint8))


def numbers(split: Split) -> list[int]:
    return (split.images[:, 0, 0].astype(int) * 256 + split.images[:, 0, 1]).tolist()


@given(n=st.integers(2, 400), ratio=st.decimals("0.01", "0.99", places=3).map(float), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_split_is_a_partition(n: int, ratio: float, seed: int) -> None:
    """Each image keeps its label and is on the same side as in scikit-learn; floor(ratio × n) are for training."""
    n_train = int(Decimal(str(ratio)) * n)
    if not 10 <= n_train < n:
        with pytest.raises(PipelineError, match=r"data\.train_ratio"):
            prepare.split_train_valid(numbered(n), ratio, seed)
        return
    train, valid = prepare.split_train_valid(numbered(n), ratio, seed)
    assert len(train) == n_train
    assert [numbers(train), numbers(valid)] == train_test_split(list(range(n)), train_size=n_train, random_state=seed)
    assert sorted(numbers(train) + numbers(valid)) == list(range(n))
    for split in (train, valid):
        assert [number % 10 for number in numbers(split)] == split.labels.tolist()


def test_only_the_seed_decides_the_split() -> None:
    """One seed gives the same split on every machine, and another seed gives another split."""
    first, again, other = (prepare.split_train_valid(numbered(50), 0.8, seed)[1] for seed in (0, 0, 1))
    assert numbers(first) == numbers(again) != numbers(other)
    # The first validation images of seed 0, written down: a change here changes every result.
    assert numbers(first)[:4] == [28, 11, 10, 41]


def test_main_writes_splits_and_summary(tmp_dir: Path) -> None:
    """On digits there are 1,200 / 300 / 297 images, and the summary's numbers match the files."""
    write_params(small_params())
    prepare.main()
    train, valid, test = map(load_split, (prepare.TRAIN_PATH, prepare.VALID_PATH, prepare.TEST_PATH))
    assert (len(train), len(valid), len(test)) == (1200, 300, 297)
    summary = json.loads(prepare.SUMMARY_PATH.read_text())
    assert summary["dataset"] == "digits"
    assert summary["train"]["pixel_mean"] == pytest.approx(train.pixels().mean(), abs=1e-5)
    assert summary["valid"]["pixel_std"] == pytest.approx(valid.pixels().std(), abs=1e-5)
    assert summary["test"]["n_per_digit"]["3"] == (test.labels == 3).sum()
    for name, path in (("train", prepare.TRAIN_PATH), ("valid", prepare.VALID_PATH), ("test", prepare.TEST_PATH)):
        assert summary[name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(summary["train"]["n_per_digit"].values()) == summary["train"]["n_images"] == 1200


def test_main_writes_the_same_bytes_again(tmp_dir: Path) -> None:
    """Preparing twice gives identical bytes."""
    write_params(small_params())
    prepare.main()
    first = prepare.TRAIN_PATH.read_bytes() + prepare.SUMMARY_PATH.read_bytes()
    prepare.main()
    assert prepare.TRAIN_PATH.read_bytes() + prepare.SUMMARY_PATH.read_bytes() == first


def test_summarise_gives_mean_and_deviation() -> None:
    """The summary's mean and standard deviation are those of the pixels in 0…1."""
    split = random_split(30)
    summary = prepare.summarise(split)
    assert summary["pixel_mean"] == pytest.approx(split.pixels().mean(), abs=1e-6)
    assert summary["pixel_std"] == pytest.approx(split.pixels().std(), abs=1e-6)


def test_ten_training_images_are_the_minimum() -> None:
    """Nine images are an error, and 0.018 × 1500 is 27, although it is slightly less in floating point."""
    with pytest.raises(PipelineError, match=r"leaves 9 for training"):
        prepare.split_train_valid(numbered(12), 0.75, 0)
    assert len(prepare.split_train_valid(numbered(20), 0.5, 0)[0]) == 10
    assert len(prepare.split_train_valid(numbered(1500), 0.018, 0)[0]) == 27


def test_split_seed_decides_the_files(tmp_dir: Path) -> None:
    """Another data.split_seed gives other training images and the same test images."""
    written = []
    for seed in (0, 1):
        write_params(small_params(data__split_seed=seed))
        prepare.main()
        written.append((prepare.TRAIN_PATH.read_bytes(), prepare.TEST_PATH.read_bytes()))
    assert written[0][0] != written[1][0]
    assert written[0][1] == written[1][1]
