"""Measure the trained autoencoder and its codes on the test set, compare them with PCA and pixels, and draw figures.

    python -m pipeline.evaluate       (normally through `dvc repro`)

Reads the `model` and `evaluate` sections of params.yaml. It runs on the CPU regardless of train.device, with each
matrix product on one thread, so that its outputs do not depend on the machine. It takes seconds, or minutes at
bottleneck sizes of several hundred, because it decodes without each dimension in turn. Metrics, figures and the
explorer are added to the MLflow run of the training that produced the weights.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from pipeline.autoencoder import figures
from pipeline.autoencoder.explorer import explorer
from pipeline.autoencoder.figures import Decode, save_figure
from pipeline.autoencoder.metrics import BATCH_SIZE, DEAD, effective_rank, importance, measure
from pipeline.autoencoder.model import Architecture, AutoEncoder, load_model
from pipeline.autoencoder.pca import load_pca
from pipeline.autoencoder.probes import CLASSIFIERS, accuracies
from pipeline.autoencoder.splits import Split, load_split
from pipeline.core.errors import PipelineError, run_command
from pipeline.core.files import load_json, reading, write_out
from pipeline.params import EvaluateParams, ModelParams, load_params
from pipeline.tracking import runs
from pipeline.tracking.progress import announce_data, report

SUMMARY_PATH = Path("reports/data.json")
TRAIN_PATH = Path("data/prepared/train.safetensors")
TEST_PATH = Path("data/prepared/test.safetensors")
PCA_PATH = Path("data/baselines/pca.safetensors")
PIXEL_PROBES_PATH = Path("data/baselines/pixel_probes.json")
PCA_PROBES_PATH = Path("data/baselines/pca_probes.json")
MODEL_PATH = Path("models/autoencoder.safetensors")
HISTORY_PATH = Path("reports/history.csv")
METRICS_PATH = Path("reports/evaluate.json")
DIMENSIONS_PATH = Path("reports/dimensions.csv")
RECONSTRUCTIONS_PATH = Path("reports/figures/reconstructions.png")
WORST_PATH = Path("reports/figures/worst.png")
LATENT_PATH = Path("reports/figures/latent.png")
MIDPOINTS_PATH = Path("reports/figures/midpoints.png")
MANIFOLD_PATH = Path("reports/figures/manifold.png")
TRAVERSALS_PATH = Path("reports/figures/traversals.png")
LEARNING_PATH = Path("reports/figures/learning.png")
ERRORS_PATH = Path("reports/figures/errors.png")
EXPLORER_PATH = Path("models/explorer.html")


def main() -> None:
    # dvc.yaml marks this file `persist`, so DVC does not delete it. A failure must not leave it next to new weights.
    METRICS_PATH.unlink(missing_ok=True)
    params = load_params()
    announce_data(params)
    torch.set_num_threads(1)
    with runs.evaluation_run(params), threadpool_limits(1):
        dataset = name_of_data()
        pixel_probes, pca_probes = load_json(PIXEL_PROBES_PATH, CLASSIFIERS), load_json(PCA_PROBES_PATH, CLASSIFIERS)
        train, test, pca = load_split(TRAIN_PATH), load_split(TEST_PATH), load_pca(PCA_PATH)
        model = load_trained(params.model)
        k = model.architecture.bottleneck_size
        decode = partial(decode_by, model)

        report(f"encoding {len(train):,} training and {len(test):,} test images")
        pixels = test.pixels()
        codes = model.encode(torch.from_numpy(pixels)).numpy()
        train_codes = encode_in_batches(model, train.pixels())
        reconstructions = decode(codes)
        image_mse = ((reconstructions - pixels) ** 2).mean(axis=1, dtype=np.float64)
        metrics = measure(image_mse, test.labels, pca.mse(pixels, k), pca.mse(pixels, 0))
        report(f"reading the digit from {k}-dimensional codes by {' and '.join(CLASSIFIERS).replace('_', ' ')}")
        accuracy = accuracies(train_codes, train.labels, codes, test.labels)
        report("decoding without each latent dimension in turn")
        shares = importance(codes, pixels, decode)
        write_metrics(dataset, metrics, codes, shares, accuracy, pca_probes, pixel_probes)

        report("drawing the figures")
        data = figures.DATASET_TITLES[dataset]
        with reading(HISTORY_PATH, "train"):
            history = pd.read_csv(HISTORY_PATH)
            save_figure(figures.learning_curves(f"{data}, bottleneck size {k}", history), LEARNING_PATH)
        title = f"{data} test set, bottleneck size {k}"
        save_figure(figures.errors(title, image_mse), ERRORS_PATH)
        draw_images(title, test, reconstructions, pca.reconstruct(pixels, k))
        draw_latent_space(title, test, codes, shares, decode, params.evaluate)
        report("writing the page to explore the latent space")
        write_out(EXPLORER_PATH, explorer(title, model, test, metrics["mse"]))
    print(
        f"test MSE {metrics['mse']:.4f} ({metrics['psnr_db']:.2f} dB); PCA with as many components "
        f"{metrics['pca_mse']:.4f}, mean image {metrics['mean_image_mse']:.4f}"
    )


def draw_images(title: str, test: Split, reconstructions: np.ndarray, by_pca: np.ndarray) -> None:
    """Draw test images next to their reconstructions [n, 784]."""
    shown = (title, test.pixels(), test.labels)
    save_figure(figures.reconstructions(*shown, reconstructions, by_pca), RECONSTRUCTIONS_PATH)
    save_figure(figures.worst(*shown, reconstructions), WORST_PATH)


def draw_latent_space(
    title: str, test: Split, codes: np.ndarray, shares: np.ndarray, decode: Decode, params: EvaluateParams
) -> None:
    """Draw the codes [n, k], and what the decoder makes of codes between them."""
    shown = (title, test.pixels(), test.labels)
    save_figure(figures.latent_scatter(title, codes, test.labels), LATENT_PATH)
    save_figure(figures.midpoints(*shown, codes, decode, params.midpoint_pairs), MIDPOINTS_PATH)
    save_figure(figures.decoded_manifold(title, codes, decode, params.manifold_size), MANIFOLD_PATH)
    save_figure(figures.traversals(title, shown[1], codes, shares, decode), TRAVERSALS_PATH)


def name_of_data() -> str:
    """Return the data set's name, which `prepare` recorded.

    Raises:
        PipelineError: the name is unknown.
    """
    dataset = load_json(SUMMARY_PATH, ["dataset"])["dataset"]
    if dataset not in figures.DATASET_TITLES:
        raise PipelineError(
            f"{SUMMARY_PATH} names an unknown data set, {dataset!r}; `dvc repro prepare` writes it again"
        )
    return str(dataset)


def load_trained(params: ModelParams) -> AutoEncoder:
    """Load the model that `train` wrote, without gradients.

    Raises:
        PipelineError: the model's shape does not match the parameters.
    """
    model = load_model(MODEL_PATH).requires_grad_(False)
    if model.architecture != Architecture.from_params(params):
        raise PipelineError(f"{MODEL_PATH} was trained with other model parameters; `dvc repro` trains it again")
    return model


def encode_in_batches(model: AutoEncoder, pixels: np.ndarray) -> np.ndarray:
    """[n, 784] → [n, k], BATCH_SIZE images at a time, which needs less memory than all at once."""
    return torch.cat([model.encode(batch) for batch in torch.from_numpy(pixels).split(BATCH_SIZE)]).numpy()


def decode_by(model: AutoEncoder, codes: np.ndarray) -> np.ndarray:
    """Map codes [n, k] to images [n, 784], pixels in 0…1."""
    return model.decode(torch.from_numpy(codes.astype(np.float32))).numpy()


def write_metrics(
    dataset: str,
    metrics: dict[str, Any],
    codes: np.ndarray,
    shares: np.ndarray,
    accuracy: dict[str, float],
    pca_probes: dict[str, float],
    pixel_probes: dict[str, float],
) -> None:
    """Write METRICS_PATH, and DIMENSIONS_PATH with a line for each latent dimension."""
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
    dimensions = np.arange(1, len(shares) + 1)
    columns = {"dimension": dimensions, "std": codes.std(axis=0), "mse_growth_without": shares}
    write_out(DIMENSIONS_PATH, pd.DataFrame(columns).to_csv(index=False, float_format="%.6g"))


if __name__ == "__main__":
    run_command(main)
