"""What the HTML pages share: a network with weights of 8 bits, and data that their JavaScript (page.js) reads."""

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

SHARED = Path(__file__).with_suffix(".js")


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


def arrays_of(layers: Sequence[Layer]) -> list[np.ndarray]:
    """Return the arrays of a half in the order in which the page reads them."""
    return [array for layer in layers for array in (layer.scales, layer.bias, layer.gain, layer.shift, layer.weights)]


def shapes_of(layers: Sequence[Layer]) -> list[tuple[int, ...]]:
    return [layer.weights.shape for layer in layers]


def fill(template: Path, title: str, head: dict[str, object], arrays: Sequence[np.ndarray]) -> str:
    """Return a page: the template with its title, the shared JavaScript and the data."""
    return (
        template.read_text(encoding="utf-8")
        .replace("@TITLE@", html.escape(title))
        .replace("@SHARED@", SHARED.read_text(encoding="utf-8"))
        .replace("@DATA@", pack(head, arrays))
    )


def pack(head: dict[str, object], arrays: Sequence[np.ndarray]) -> str:
    """Return base64 of gzip of: the head's length (uint32, little-endian), the head as JSON, the arrays' bytes.

    Each part starts at a multiple of four bytes, so that JavaScript can read floats in place.
    """
    text = json.dumps(head, allow_nan=False).encode()
    parts = [np.uint32(len(text)).tobytes(), text, *(np.ascontiguousarray(array).tobytes() for array in arrays)]
    content = b"".join(part + b"\0" * (-len(part) % 4) for part in parts)
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()
