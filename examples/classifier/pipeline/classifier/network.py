"""The classifier: one hidden layer on standardised features."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from pipeline.core.files import reading, write_out


class Classifier(nn.Module):
    """Map features [n, d], as measured, to logits [n, classes]."""

    def __init__(self, n_features: int, n_classes: int, hidden_size: int):
        super().__init__()
        self.shape = (n_features, n_classes, hidden_size)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))
        self.layers = nn.Sequential(nn.Linear(n_features, hidden_size), nn.ReLU(), nn.Linear(hidden_size, n_classes))

    def standardise(self, features: torch.Tensor) -> None:
        """Take mean and standard deviation from the training features [n, d]."""
        self.mean, self.std = features.mean(0), features.std(0)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers((features - self.mean) / self.std)


def save_model(model: Classifier, path: Path) -> None:
    write_out(path, save(model.state_dict(), {"shape": json.dumps(model.shape)}))


def load_model(path: Path) -> Classifier:
    """Read a model that `save_model` wrote. It is in evaluation mode.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    with reading(path, "train"):
        with safe_open(path, framework="pt") as file:
            model = Classifier(*json.loads(file.metadata()["shape"]))
        model.load_state_dict(load_file(path))
    return model.eval()
