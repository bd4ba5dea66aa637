"""The explorer: one HTML page with the model inside, on which a reader moves through the latent space.

The page needs no network. Its JavaScript encodes and decodes with weights of 8 bits, which are in the page together
with test images and their codes. explorer.html is the page without the data.
"""

from pathlib import Path

import numpy as np

from pipeline.autoencoder.model import AutoEncoder
from pipeline.autoencoder.page import arrays_of, fill, layers_of, run_half, shapes_of
from pipeline.autoencoder.splits import Split

TEMPLATE = Path(__file__).with_suffix(".html")
# The images on the page. More would make it large: an image takes about 150 bytes, its code 4 for each dimension.
N_IMAGES = 2000
N_WORST = 100
N_DIRECTIONS = 4


def explorer(title: str, model: AutoEncoder, test: Split, exact_mse: float) -> str:
    """Return the page. It has the first N_IMAGES test images and the N_WORST with the largest error of all.

    Args:
        title: the data and the bottleneck size, for the page's head.
        exact_mse: the model's test MSE, next to which the page shows that of its own weights.
    """
    encoder, decoder = map(layers_of, (model.encoder, model.decoder))
    pixels = test.pixels()
    codes = run_half(encoder, pixels).astype(np.float32)
    image_mse = ((run_half(decoder, codes).clip(0, 1) - pixels) ** 2).mean(axis=1)
    shown = np.union1d(np.arange(min(N_IMAGES, len(test))), np.argsort(image_mse)[-N_WORST:])
    directions = principal_directions(codes[shown])
    head = {
        "k": model.architecture.bottleneck_size,
        "encoder": shapes_of(encoder),
        "decoder": shapes_of(decoder),
        "nDirections": len(directions),
        "n": len(shown),
        "nTest": len(test),
        "mse": float(image_mse.mean()),
        "exactMse": exact_mse,
        "digitMse": [digit_mse(image_mse, test.labels, digit) for digit in range(10)],
    }
    arrays = [*arrays_of(encoder), *arrays_of(decoder), directions, codes[shown], image_mse[shown].astype(np.float32)]
    return fill(TEMPLATE, title, head, [*arrays, test.labels[shown], test.images[shown]])


def principal_directions(codes: np.ndarray) -> np.ndarray:
    """Return the directions in which codes [n, k] vary most, float32 [at most N_DIRECTIONS, k]; none for k below 3."""
    if codes.shape[1] < 3:
        return np.zeros((0, codes.shape[1]), np.float32)
    return np.linalg.svd(codes - codes.mean(axis=0), full_matrices=False)[2][:N_DIRECTIONS].astype(np.float32)


def digit_mse(image_mse: np.ndarray, labels: np.ndarray, digit: int) -> float | None:
    """Return the mean error of a digit's images, or None if there are none."""
    of_digit = image_mse[labels == digit]
    return float(of_digit.mean()) if len(of_digit) else None
