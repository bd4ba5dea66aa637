"""Compute what an autoencoder must beat: PCA with as many components, the mean image, classifiers on the pixels.

    python -m pipeline.baselines      (normally through `dvc repro`)

All of them depend only on the data, so they are computed once for all sizes, not for every experiment.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from pipeline.autoencoder.pca import fit_pca, save_pca
from pipeline.autoencoder.probes import accuracies
from pipeline.autoencoder.splits import load_split
from pipeline.core.errors import run_command
from pipeline.core.files import write_out

TRAIN_PATH = Path("data/prepared/train.safetensors")
TEST_PATH = Path("data/prepared/test.safetensors")
PCA_PATH = Path("data/baselines/pca.safetensors")
PCA_MSE_PATH = Path("reports/pca.csv")
ACCURACY_PATH = Path("data/baselines/pixel_probes.json")


def main() -> None:
    # One thread, because the number of threads decides the last bits and results must not depend on the machine.
    train, test = load_split(TRAIN_PATH), load_split(TEST_PATH)
    pixels, test_pixels = train.pixels(), test.pixels()
    with threadpool_limits(1):
        pca = fit_pca(pixels)
        table = pd.DataFrame({"n_components": sizes_to_measure(len(pca.components))})
        table["test_mse"] = [pca.mse(test_pixels, size) for size in table["n_components"]]
    accuracy = accuracies(pixels, train.labels, test_pixels, test.labels)
    save_pca(pca, PCA_PATH)
    write_out(PCA_MSE_PATH, table.to_csv(index=False, float_format="%.6g"))
    write_out(ACCURACY_PATH, json.dumps(accuracy, indent=2) + "\n")
    print(f"test MSE of the mean image {table['test_mse'][0]:.4f}, of PCA with 2 components {table['test_mse'][2]:.4f}")


def sizes_to_measure(n_components: int) -> list[int]:
    """Return 0, 1, 2, 3, … up to `n_components`, growing by about a fifth per step and including every power of two.

    Each size requires a reconstruction of all test images, so not all sizes are measured.
    """
    quarters_of_octaves = 2 ** np.arange(0, np.log2(n_components), 0.25)
    return sorted({0, *np.rint(quarters_of_octaves).astype(int).tolist(), n_components})


if __name__ == "__main__":
    run_command(main)
