"""Measure the trained autoencoder and its codes on the test set, beside PCA and the pixels, and draw it.

    python -m pipeline.evaluate       (normally through `dvc repro`)

Reads the `model` and `evaluate` sections of params.yaml. It runs on the CPU whatever train.device says, each
matrix product on one thread, so that its outs do not depend on the machine. It takes seconds, and minutes at
bottleneck sizes of several hundred, because it decodes without each dimension in turn. Metrics and
figures join the MLflow row of the training that made the weights.
"""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from pipeline import figures, tracking
from pipeline.data import load_split
from pipeline.errors import PipelineError, run_command
from pipeline.model import Architecture, load_model
from pipeline.outs import write_out
from pipeline.params import load_params
from pipeline.pca import load_pca
from pipeline.probes import BATCH_SIZE, CLASSIFIERS, DEAD, accuracies, effective_rank, importance
from pipeline.progress import announce_dataset, report

SUMMARY_PATH = Path("reports/data.json")
TRAIN_PATH = Path("data/prepared/train.safetensors")
TEST_PATH = Path("data/prepared/test.safetensors")
PCA_PATH = Path("data/baselines/pca.safetensors")
PIXEL_PROBES_PATH = Path("data/baselines/pixel_probes.json")
PCA_PROBES_PATH = Path("data/baselines/pca_probes.json")
MODEL_PATH = Path("models/autoencoder.safetensors")
METRICS_PATH = Path("reports/evaluate.json")
DIMENSIONS_PATH = Path("reports/dimensions.csv")
RECONSTRUCTIONS_PATH = Path("reports/figures/reconstructions.png")
WORST_PATH = Path("reports/figures/worst.png")
LATENT_PATH = Path("reports/figures/latent.png")
MIDPOINTS_PATH = Path("reports/figures/midpoints.png")
MANIFOLD_PATH = Path("reports/figures/manifold.png")


def main() -> None:
    # DVC keeps this file, which dvc.yaml marks `persist`. A failure must not leave it next to new weights.
    METRICS_PATH.unlink(missing_ok=True)
    params = load_params()
    announce_dataset(params)
    delivery = tracking.prepare_delivery()
    dataset = load_json(SUMMARY_PATH, ["dataset"])["dataset"]
    if dataset not in figures.DATASET_TITLES:
        raise PipelineError(
            f"{SUMMARY_PATH} names an unknown data set, {dataset!r}; `dvc repro prepare` writes it again"
        )
    pixel_probes, pca_probes = load_json(PIXEL_PROBES_PATH, CLASSIFIERS), load_json(PCA_PROBES_PATH, CLASSIFIERS)
    train, test = load_split(TRAIN_PATH), load_split(TEST_PATH)
    pca = load_pca(PCA_PATH)
    model = load_model(MODEL_PATH).requires_grad_(False)
    if model.architecture != Architecture.from_params(params.model):
        raise PipelineError(f"{MODEL_PATH} was trained with other model parameters; `dvc repro` trains it anew")
    k = model.architecture.bottleneck_size

    def decode(codes: np.ndarray) -> np.ndarray:
        """[n, k] → [n, 784]"""
        return model.decode(torch.from_numpy(codes.astype(np.float32))).numpy()

    torch.set_num_threads(1)
    with threadpool_limits(1):
        pixels = test.pixels()
        report(f"encoding {len(train):,} training and {len(test):,} test images")
        codes = model.encode(torch.from_numpy(pixels)).numpy()
        batches = torch.from_numpy(train.pixels()).split(BATCH_SIZE)
        train_codes = torch.cat([model.encode(batch) for batch in batches]).numpy()
        reconstructions = decode(codes)
        image_mse = ((reconstructions - pixels) ** 2).mean(axis=1, dtype=np.float64)
        metrics = measure(image_mse, test.labels, pca.mse(pixels, k), pca.mse(pixels, 0))
        report(f"reading the digit from {k}-dimensional codes by {' and '.join(CLASSIFIERS).replace('_', ' ')}")
        accuracy = accuracies(train_codes, train.labels, codes, test.labels)
        report("decoding without each latent dimension in turn")
        shares = importance(codes, pixels, decode)
        content = {
            "dataset": dataset,
            "test": metrics,
            "codes": {"effective_rank": effective_rank(codes), "n_dead": int((shares < DEAD).sum())},
            "accuracy": {
                name: {"codes": value, "pca": pca_probes[name], "pixels": pixel_probes[name]}
                for name, value in accuracy.items()
            },
        }
        write_out(METRICS_PATH, json.dumps(content, indent=2) + "\n")
        columns = {"dimension": np.arange(1, k + 1), "std": codes.std(axis=0), "mse_growth_without": shares}
        write_out(DIMENSIONS_PATH, pd.DataFrame(columns).to_csv(index=False, float_format="%.6g"))

        report("drawing five figures")
        context = f"{figures.DATASET_TITLES[dataset]} test set, bottleneck size {k}"
        by_pca = pca.reconstruct(pixels, k)
        for path, figure in (
            (RECONSTRUCTIONS_PATH, figures.reconstructions(context, pixels, test.labels, reconstructions, by_pca)),
            (WORST_PATH, figures.worst(context, pixels, test.labels, reconstructions)),
            (LATENT_PATH, figures.latent_scatter(context, codes, test.labels)),
            (
                MIDPOINTS_PATH,
                figures.midpoints(context, pixels, test.labels, codes, decode, params.evaluate.midpoint_pairs),
            ),
            (MANIFOLD_PATH, figures.decoded_manifold(context, codes, decode, params.evaluate.manifold_size)),
        ):
            figures.save_figure(figure, path)
    tracking.log_evaluation(params, delivery)
    print(
        f"test MSE {metrics['mse']:.4f} ({metrics['psnr_db']:.2f} dB); PCA with as many components "
        f"{metrics['pca_mse']:.4f}, mean image {metrics['mean_image_mse']:.4f}"
    )


def measure(image_mse: np.ndarray, labels: np.ndarray, pca_mse: float, mean_image_mse: float) -> dict[str, Any]:
    """The test metrics.

    Args:
        image_mse: [n], for each image the mean over its pixels (0…1) of the squared errors.
        labels: [n], the images' digits.
        pca_mse: the MSE of PCA with as many components as the bottleneck has dimensions, or all that there are.
        mean_image_mse: the MSE of the mean training image.

    Returns:
        mse, the mean over images; psnr_db = 10 log10(1 / mse), 1 being the peak value; pca_mse and
        mean_image_mse; ratio_to_pca = mse / pca_mse, absent where PCA leaves no error beyond rounding;
        digit_mse, the mean over the images of each digit.
    """
    mse = float(image_mse.mean())
    metrics: dict[str, Any] = {
        "mse": mse,
        "psnr_db": 10 * math.log10(1 / mse),
        "pca_mse": pca_mse,
        "mean_image_mse": mean_image_mse,
    }
    if pca_mse > 1e-9:
        metrics["ratio_to_pca"] = mse / pca_mse
    metrics["digit_mse"] = {str(digit): float(image_mse[labels == digit].mean()) for digit in np.unique(labels)}
    return metrics


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


if __name__ == "__main__":
    run_command(main)
