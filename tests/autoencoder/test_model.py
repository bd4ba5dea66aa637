"""The network's shape and its file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from pipeline.autoencoder.model import Architecture, AutoEncoder, linear_widths, load_model, save_model
from pipeline.core.errors import PipelineError
from tests.helpers import small_params


def linear_layers(half: nn.Sequential) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in half if isinstance(layer, nn.Linear)]


def test_the_decoder_mirrors_the_encoder() -> None:
    """Both halves have n_layers linear layers, and the decoder's widths are the encoder's in reverse."""
    model = AutoEncoder(Architecture.from_params(small_params(model__n_layers=10).model))
    encoder, decoder = linear_layers(model.encoder), linear_layers(model.decoder)
    assert len(encoder) == 10
    assert encoder[0][0] == 784
    assert encoder[-1][1] == 2
    assert decoder == [(out, into) for into, out in reversed(encoder)]


def test_widths_shrink_linearly() -> None:
    """The widths lie on a straight line from 784 to the bottleneck."""
    assert linear_widths(2, 10) == (706, 628, 549, 471, 393, 315, 237, 158, 80)
    assert linear_widths(10, 1) == ()
    assert linear_widths(784, 4) == (784, 784, 784)


def test_hidden_sizes_replace_the_line() -> None:
    """model.hidden_sizes sets the encoder's widths directly."""
    params = small_params(model__n_layers=None, model__hidden_sizes=[100, 30])
    model = AutoEncoder(Architecture.from_params(params.model))
    assert linear_layers(model.encoder) == [(784, 100), (100, 30), (30, 2)]


@pytest.mark.parametrize(("regularizer", "layer"), [("batch_norm", nn.BatchNorm1d), ("dropout", nn.Dropout)])
def test_the_regularizer_reaches_every_block(regularizer: str, layer: type[nn.Module]) -> None:
    """The regularizer's layer ends every block of both halves, and dropout has the chosen probability."""
    params = small_params(model__regularizer=regularizer, model__dropout_p=0.37, model__n_layers=3)
    model = AutoEncoder(Architecture.from_params(params.model))
    for half in (model.encoder, model.decoder):
        assert [type(module) for module in half] == [nn.Linear, nn.ReLU, layer] * 2 + [nn.Linear]
    assert all(module.p == 0.37 for module in model.modules() if isinstance(module, nn.Dropout))


@pytest.mark.parametrize("bottleneck_size", [1, 784])
def test_the_smallest_and_the_largest_bottleneck(bottleneck_size: int) -> None:
    """Codes have the bottleneck's size, and reconstructions have the image's size."""
    model = AutoEncoder(Architecture.from_params(small_params(model__bottleneck_size=bottleneck_size).model)).eval()
    codes = model.encode(torch.rand(3, 784))
    assert codes.shape == (3, bottleneck_size)
    assert model.decode(codes).shape == (3, 784)


def test_reconstructions_are_pixels() -> None:
    """Outputs are clipped to 0…1 in evaluation, but not in training, where clipped pixels would learn nothing."""
    torch.manual_seed(0)
    model = AutoEncoder(Architecture.from_params(small_params().model))
    pixels = torch.rand(64, 784)
    in_training = model(pixels)
    assert in_training.min() < 0
    evaluated = model.eval()(pixels)
    assert torch.equal(evaluated, model.decoder(model.encode(pixels)).clamp(0, 1))
    assert evaluated.min() == 0


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """A loaded model gives the same reconstructions, and saving twice gives the same bytes."""
    params = small_params(model__regularizer="dropout").model
    model = AutoEncoder(Architecture.from_params(params)).eval()
    save_model(model, tmp_path / "model.safetensors")
    save_model(model, tmp_path / "again.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.architecture == model.architecture
    assert not loaded.training
    pixels = torch.rand(4, 784)
    torch.testing.assert_close(loaded(pixels), model(pixels), rtol=0, atol=0)


def test_a_missing_model(tmp_path: Path) -> None:
    """The error for a missing model names the command that makes it."""
    with pytest.raises(PipelineError, match="is missing; `dvc repro train`"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("damage", ["cut", "no metadata", "other weights"])
def test_a_damaged_model(tmp_path: Path, damage: str) -> None:
    """A file that is cut off, lacks its architecture or does not match it raises an error."""
    path = tmp_path / "model.safetensors"
    model = AutoEncoder(Architecture.from_params(small_params().model))
    save_model(model, path)
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-1000])
        case "no metadata":
            save_file({"weight": np.zeros(3, np.float32)}, path)
        case "other weights":
            architecture = {"bottleneck_size": 2, "hidden_sizes": [5], "regularizer": "dropout", "dropout_p": 0.1}
            save_file({"weight": np.zeros(3, np.float32)}, path, {"architecture": json.dumps(architecture)})
    with pytest.raises(PipelineError, match="is damaged"):
        load_model(path)
