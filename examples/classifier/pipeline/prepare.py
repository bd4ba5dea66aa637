"""Split one of scikit-learn's tables into training, validation and test rows.

python -m pipeline.prepare          (normally through `dvc repro`)
"""

from pathlib import Path

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

from pipeline.classifier.data import Table, save_table
from pipeline.core.errors import run_command
from pipeline.params import load_params

TRAIN_PATH = Path("data/prepared/train.safetensors")
VALID_PATH = Path("data/prepared/valid.safetensors")
TEST_PATH = Path("data/prepared/test.safetensors")


def main() -> None:
    params = load_params().data
    load = {"wine": datasets.load_wine, "breast_cancer": datasets.load_breast_cancer}[params.dataset]
    features, classes = load(return_X_y=True)
    features, classes = features.astype(np.float32), classes.astype(np.int64)
    rest, *test = train_test_split(np.arange(len(classes)), test_size=params.test_ratio, random_state=params.split_seed)
    train, valid = train_test_split(rest, test_size=params.valid_ratio, random_state=params.split_seed)
    for rows, path in ((train, TRAIN_PATH), (valid, VALID_PATH), (test[0], TEST_PATH)):
        save_table(Table(features[rows], classes[rows]), path)
    print(f"prepared {params.dataset}: {len(train)} train, {len(valid)} valid, {len(test[0])} test rows")


if __name__ == "__main__":
    run_command(main)
