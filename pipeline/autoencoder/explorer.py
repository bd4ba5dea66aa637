"""The explorer: one HTML page with the model inside, on which a reader moves through the latent space.

The page needs no network. Its JavaScript encodes and decodes with weights of 8 bits, which are in the page together
with test images and their codes. explorer.html is the page without the data.
"""

import base64
import gzip
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.autoencoder.model import AutoEncoder
from pipeline.autoencoder.splits import Split

TEMPLATE = Path(__file__).with_suffix(".html")
# The images on the page. More would make it large: an image takes about 150 bytes, its code 4 for each dimension.
N_IMAGES = 2000
N_WORST = 100
N_DIRECTIONS = 4


@dataclass(frozen=True)
class Layer:
    """A linear layer with weights of 8 bits, and what batch normalisation does after its ReLU (not in the last layer).

    y = scales × (weights @ x) + bias; then z = gain × max(y, 0) + shift. Gain and shift stay separate from the next
    weights: multiplied with them, units that are rarely active would take most of the 8 bits.
    """

    weights: np.ndarray  # int8 [n_out, n_in]
    scales: np.ndarray  # float32 [n_out], like the others
    bias: np.ndarray
    gain: np.ndarray
    shift: np.ndarray

    def linear(self, x: np.ndarray) -> np.ndarray:
        """Map [n, n_in] to [n, n_out] with the weights that the page uses."""
        return x @ (self.weights * self.scales[:, None]).T + self.bias


def layers_of(half: nn.Sequential) -> list[Layer]:
    """Return a half's layers, each output's weights rounded to 255 steps between plus and minus the largest one."""
    layers: list[Layer] = []
    for module in half:
        if isinstance(module, nn.Linear):
            weight = module.weight.detach().numpy()
            scales = np.maximum(np.abs(weight).max(axis=1), 1e-30) / 127
            rounded = np.rint(weight / scales[:, None]).astype(np.int8)
            ones = np.ones(len(weight), np.float32)
            layers.append(Layer(rounded, scales, module.bias.detach().numpy(), ones, 0 * ones))
        elif isinstance(module, nn.BatchNorm1d):
            assert module.running_var is not None
            assert module.running_mean is not None
            gain = module.weight.detach() / torch.sqrt(module.running_var + module.eps)
            shift = module.bias.detach() - module.running_mean * gain
            layers[-1] = replace(layers[-1], gain=gain.numpy(), shift=shift.numpy())
    return layers


def run_half(layers: Sequence[Layer], x: np.ndarray) -> np.ndarray:
    """Map [n, n_in] through a half, as the page does."""
    for layer in layers[:-1]:
        x = layer.gain * np.maximum(layer.linear(x), 0) + layer.shift
    return layers[-1].linear(x)


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
        "encoder": [layer.weights.shape for layer in encoder],
        "decoder": [layer.weights.shape for layer in decoder],
        "nDirections": len(directions),
        "n": len(shown),
        "nTest": len(test),
        "mse": float(image_mse.mean()),
        "exactMse": exact_mse,
        "digitMse": [digit_mse(image_mse, test.labels, digit) for digit in range(10)],
    }
    arrays: list[np.ndarray] = []
    for layer in (*encoder, *decoder):
        arrays += [layer.scales, layer.bias, layer.gain, layer.shift, layer.weights]
    arrays += [directions, codes[shown], image_mse[shown].astype(np.float32), test.labels[shown], test.images[shown]]
    return (
        TEMPLATE.read_text(encoding="utf-8")
        .replace("@TITLE@", html.escape(title))
        .replace("@DATA@", pack(head, arrays))
    )


def principal_directions(codes: np.ndarray) -> np.ndarray:
    """Return the directions in which codes [n, k] vary most, float32 [at most N_DIRECTIONS, k]; none for k below 3."""
    if codes.shape[1] < 3:
        return np.zeros((0, codes.shape[1]), np.float32)
    return np.linalg.svd(codes - codes.mean(axis=0), full_matrices=False)[2][:N_DIRECTIONS].astype(np.float32)


def digit_mse(image_mse: np.ndarray, labels: np.ndarray, digit: int) -> float | None:
    """Return the mean error of a digit's images, or None if there are none."""
    of_digit = image_mse[labels == digit]
    return float(of_digit.mean()) if len(of_digit) else None


def pack(head: dict[str, object], arrays: Sequence[np.ndarray]) -> str:
    """Return base64 of gzip of: the head's length (uint32, little-endian), the head as JSON, the arrays' bytes.

    Each part starts at a multiple of four bytes, so that JavaScript can read floats in place.
    """
    text = json.dumps(head).encode()
    parts = [np.uint32(len(text)).tobytes(), text, *(np.ascontiguousarray(array).tobytes() for array in arrays)]
    content = b"".join(part + b"\0" * (-len(part) % 4) for part in parts)
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
