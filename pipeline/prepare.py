"""Download MNIST (or load scikit-learn's digits) and split it into train, valid and test.

    python -m pipeline.prepare        (normally through `dvc repro`)

Reads the `data` section of params.yaml. The raw files are a cache under the main repository's root, not an output.
Another ratio or seed therefore downloads nothing, and temporary experiments share the files.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from pipeline.autoencoder import datasets
from pipeline.autoencoder.splits import Split, save_split
from pipeline.core.errors import PipelineError, run_command
from pipeline.core.files import write_out
from pipeline.core.repository import RAW_FOLDER, main_root
from pipeline.params import load_params
from pipeline.tracking.progress import announce_data

TRAIN_PATH = Path("data/prepared/train.safetensors")
VALID_PATH = Path("data/prepared/valid.safetensors")
TEST_PATH = Path("data/prepared/test.safetensors")
SUMMARY_PATH = Path("reports/data.json")
# The classifiers of later stages need five neighbours and more than one digit.
FEWEST_TRAINING_IMAGES = 10


def main() -> None:
    params = load_params()
    announce_data(params)
    if params.data.dataset == "digits":
        labelled, test = datasets.digits()
    else:
        labelled, test = datasets.mnist(main_root() / RAW_FOLDER)
    train, valid = split_train_valid(labelled, params.data.train_ratio, params.data.split_seed)

    summary: dict[str, object] = {"dataset": params.data.dataset}
    for name, split, path in (("train", train, TRAIN_PATH), ("valid", valid, VALID_PATH), ("test", test, TEST_PATH)):
        save_split(split, path)
        summary[name] = summarise(split) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    write_out(SUMMARY_PATH, json.dumps(summary, indent=2) + "\n")
    print(f"prepared {params.data.dataset}: {len(train):,} train, {len(valid):,} valid, {len(test):,} test images")


def split_train_valid(labelled: Split, train_ratio: float, seed: int) -> tuple[Split, Split]:
    """Split at random into `floor(train_ratio × n)` training images and the rest for validation.

    The random stream of numpy's RandomState is frozen, so one seed gives one split on every machine and with every
    version of numpy. scikit-learn's `train_test_split` gives the same split, but importing it takes over a second.

    Raises:
        PipelineError: fewer than 10 images would remain for training, or none for validation.
    """
    n_train = math.floor(round(train_ratio * len(labelled), 6))  # 0.018 × 1500 is 26.999999999999996
    if not FEWEST_TRAINING_IMAGES <= n_train < len(labelled):
        raise PipelineError(
            f"data.train_ratio: {train_ratio} of {len(labelled):,} images leaves {n_train:,} for training and "
            f"{len(labelled) - n_train:,} for validation; at least {FEWEST_TRAINING_IMAGES} and 1 are needed"
        )
    valid, train = np.split(np.random.RandomState(seed).permutation(len(labelled)), [len(labelled) - n_train])
    return Split(labelled.images[train], labelled.labels[train]), Split(labelled.images[valid], labelled.labels[valid])


def summarise(split: Split) -> dict[str, object]:
    """Return the size, the number of images of each digit, and the mean and standard deviation of the pixels in 0…1.

    Mean and deviation are computed from integer sums, so that no rounding depends on the machine.
    """
    n_of_value, values = np.bincount(split.images.ravel(), minlength=256), np.arange(256)
    n, total, squares = split.images.size, int(n_of_value @ values), int(n_of_value @ values**2)
    return {
        "n_images": len(split),
        "n_per_digit": {str(digit): int((split.labels == digit).sum()) for digit in range(10)},
        "pixel_mean": round(total / n / 255, 6),
        "pixel_std": round(((squares - total**2 / n) / n) ** 0.5 / 255, 6),
    }


if __name__ == "__main__":
    run_command(main)
