"""Measure the trained autoencoder and its codes on the test set, beside PCA and the pixels, and draw it.

    python -m pipeline.evaluate       (normally through `dvc repro`)

Reads the `model` and `evaluate` sections of params.yaml. It runs on one CPU thread whatever
train.device says, so that its outs do not depend on the machine; it takes seconds. Metrics and
figures join the MLflow row of the training that made the weights.
"""

import json
import math
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
from pipeline.probes import DEAD, accuracies, effective_rank, importance
from pipeline.progress import announce_dataset

SUMMARY_PATH = Path("reports/data.json")
TRAIN_PATH = Path("data/prepared/train.safetensors")
TEST_PATH = Path("data/prepared/test.safetensors")
PCA_PATH = Path("data/baselines/pca.safetensors")
PCA_MSE_PATH = Path("reports/pca.csv")
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
# Each latent dimension wants these test images decoded once more.
N_FOR_IMPORTANCE = 500
BATCH_SIZE = 1000


def main() -> None:
    params = load_params()
    announce_dataset(params)
    delivery = tracking.prepare_delivery()
    dataset = load_json(SUMMARY_PATH)["dataset"]
    pixel_probes, pca_probes = load_json(PIXEL_PROBES_PATH), load_json(PCA_PROBES_PATH)
    train, test = load_split(TRAIN_PATH), load_split(TEST_PATH)
    pca, pca_mse = load_pca(PCA_PATH), load_pca_mse(PCA_MSE_PATH)
    model = load_model(MODEL_PATH)
    if model.architecture != Architecture.from_params(params.model):
        raise PipelineError(f"{MODEL_PATH} was trained with other model parameters; `dvc repro` trains it anew")
    k = model.architecture.bottleneck_size

    def decode(codes: np.ndarray) -> np.ndarray:
        """[n, k] → [n, 784]"""
        return model.decode(torch.from_numpy(codes.astype(np.float32))).numpy()

    torch.set_num_threads(1)
    with threadpool_limits(1), torch.no_grad():
        pixels = test.pixels()
        codes = model.encode(torch.from_numpy(pixels)).numpy()
        # A batch's activations stay in the processor's cache; those of all training images fill the memory.
        batches = torch.from_numpy(train.pixels()).split(BATCH_SIZE)
        train_codes = torch.cat([model.encode(batch) for batch in batches]).numpy()
        reconstructions = decode(codes)
        image_mse = ((reconstructions - pixels) ** 2).mean(axis=1, dtype=np.float64)
        metrics = measure(image_mse, test.labels, pca_mse, k)
        accuracy = accuracies(train_codes, train.labels, codes, test.labels)
        shares = importance(codes[:N_FOR_IMPORTANCE], pixels[:N_FOR_IMPORTANCE], decode)
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


def measure(image_mse: np.ndarray, labels: np.ndarray, pca_mse: np.ndarray, bottleneck_size: int) -> dict[str, Any]:
    """The test metrics.

    Args:
        image_mse: [n], for each image the mean over its pixels (0…1) of the squared errors.
        labels: [n], the images' digits.
        pca_mse: the MSE of PCA with 0, 1, 2, … components; 0 is the mean image. A bottleneck wider
            than PCA's number of components is compared with all of them.

    Returns:
        mse, the mean over images; psnr_db = 10 log10(1 / mse), 1 being the peak value; pca_mse, with
        as many components, and mean_image_mse; ratio_to_pca = mse / pca_mse, absent where PCA leaves
        no error beyond rounding; digit_mse, the mean over the images of each digit.
    """
    mse = float(image_mse.mean())
    same_size = float(pca_mse[min(bottleneck_size, len(pca_mse) - 1)])
    metrics: dict[str, Any] = {
        "mse": mse,
        "psnr_db": 10 * math.log10(1 / mse),
        "pca_mse": same_size,
        "mean_image_mse": float(pca_mse[0]),
    }
    if same_size > 1e-9:
        metrics["ratio_to_pca"] = mse / same_size
    metrics["digit_mse"] = {str(digit): float(image_mse[labels == digit].mean()) for digit in np.unique(labels)}
    return metrics


def load_json(path: Path) -> dict[str, Any]:
    """What an earlier stage wrote.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; `dvc repro` makes it") from None
    except ValueError:
        raise PipelineError(f"{path} is damaged; delete it, then `dvc repro` brings it back") from None


def load_pca_mse(path: Path) -> np.ndarray:
    """[n]: the test MSE of PCA with 0, 1, 2, … components, by the table that `baselines` wrote.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    try:
        return pd.read_csv(path)["test_mse"].to_numpy()
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; `dvc repro baselines` makes it") from None
    except (ValueError, KeyError):  # pandas' own errors are ValueErrors
        raise PipelineError(f"{path} is damaged; delete it, then `dvc repro baselines` brings it back") from None


if __name__ == "__main__":
    run_command(main)
