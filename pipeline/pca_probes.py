"""Measure how well classifiers read the digit from PCA codes as wide as the bottleneck.

    python -m pipeline.pca_probes     (normally through `dvc repro`)

Of params.yaml it reads only model.bottleneck_size, so DVC runs it once for each size and uses its cache for every
other experiment of that size.
"""

import json
from pathlib import Path

from threadpoolctl import threadpool_limits

from pipeline.autoencoder.pca import load_pca
from pipeline.autoencoder.probes import accuracies
from pipeline.autoencoder.splits import load_split
from pipeline.core.errors import run_command
from pipeline.core.files import write_out
from pipeline.params import load_params

TRAIN_PATH = Path("data/prepared/train.safetensors")
TEST_PATH = Path("data/prepared/test.safetensors")
PCA_PATH = Path("data/baselines/pca.safetensors")
ACCURACY_PATH = Path("data/baselines/pca_probes.json")


def main() -> None:
    params = load_params()
    size = params.model.bottleneck_size
    train, test, pca = load_split(TRAIN_PATH), load_split(TEST_PATH), load_pca(PCA_PATH)
    with threadpool_limits(1):
        codes, test_codes = pca.encode(train.pixels(), size), pca.encode(test.pixels(), size)
    accuracy = accuracies(codes, train.labels, test_codes, test.labels)
    write_out(ACCURACY_PATH, json.dumps(accuracy, indent=2) + "\n")
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in accuracy.items())
    print(f"test accuracy on {size} PCA components: {shown}")


if __name__ == "__main__":
    run_command(main)
