"""Measure the mean of the training points on the test points."""

import json
from pathlib import Path

import numpy as np

from pipeline.core.errors import run_command
from pipeline.core.files import write_out


def main() -> None:
    train, test = np.load("data/prepared/train.npy"), np.load("data/prepared/test.npy")
    mse = float(((test[:, 1] - train[:, 1].mean()) ** 2).mean())
    write_out(Path("data/baseline/mean.json"), json.dumps({"mse": mse}) + "\n")


if __name__ == "__main__":
    run_command(main)
