"""The symmetric autoencoder: Linear → ReLU → BatchNorm1d or Dropout blocks, mirrored in the decoder."""

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from pipeline.core.files import reading, write_out

if TYPE_CHECKING:
    from pipeline.params import ModelParams

INPUT_SIZE = 28 * 28


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the network's shape. hidden_sizes are the encoder's widths, from the image inwards."""

    bottleneck_size: int
    hidden_sizes: tuple[int, ...]
    regularizer: str
    dropout_p: float

    @classmethod
    def from_params(cls, params: "ModelParams") -> "Architecture":
        if params.hidden_sizes is not None:
            hidden_sizes = tuple(params.hidden_sizes)
        else:
            assert params.n_layers is not None  # the validator ensures that exactly one of the two is null
            hidden_sizes = linear_widths(params.bottleneck_size, params.n_layers)
        return cls(params.bottleneck_size, hidden_sizes, params.regularizer, params.dropout_p)


def linear_widths(bottleneck_size: int, n_layers: int) -> tuple[int, ...]:
    """Return the n_layers − 1 hidden widths on a straight line from 784 to the bottleneck, both ends excluded."""
    step = (INPUT_SIZE - bottleneck_size) / n_layers
    return tuple(round(INPUT_SIZE - step * layer) for layer in range(1, n_layers))


class AutoEncoder(nn.Module):
    """Map images to codes and back: [n, 784] floats in 0…1 → [n, bottleneck_size] → [n, 784].

    The last layer of each half is linear, so codes are unbounded. In training, outputs are unbounded too, because a
    clipped pixel would have no gradient. In evaluation, outputs are clipped to 0…1, which is closer to any image.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        widths = (INPUT_SIZE, *architecture.hidden_sizes, architecture.bottleneck_size)
        self.encoder = self._half(widths)
        self.decoder = self._half(widths[::-1])

    def _half(self, widths: tuple[int, ...]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths[:-1]):
            batch_norm = self.architecture.regularizer == "batch_norm"
            regularizer = nn.BatchNorm1d(width_out) if batch_norm else nn.Dropout(self.architecture.dropout_p)
            layers += [nn.Linear(width_in, width_out), nn.ReLU(), regularizer]
        return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map images [n, 784] to codes [n, bottleneck_size]."""
        return self.encoder(pixels)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes [n, bottleneck_size] to images [n, 784]."""
        pixels = self.decoder(codes)
        return pixels if self.training else pixels.clamp(0, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(pixels))


def save_model(model: AutoEncoder, path: Path) -> None:
    """Write weights and architecture to one safetensors file, without pickle and with the same bytes every time."""
    # Only one metadata key, because safetensors writes several in no fixed order.
    metadata = {"architecture": json.dumps(asdict(model.architecture))}
    write_out(path, save(model.state_dict(), metadata))


def load_model(path: str | Path) -> AutoEncoder:
    """Read a model that `save_model` wrote. It is on the CPU and in evaluation mode.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    with reading(Path(path), "train"):
        with safe_open(path, framework="pt") as file:
            stored = json.loads(file.metadata()["architecture"])
        model = AutoEncoder(Architecture(**stored | {"hidden_sizes": tuple(stored["hidden_sizes"])}))
        model.load_state_dict(load_file(path))
    return model.eval()
