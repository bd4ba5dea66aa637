"""The tests' own experiment, described in the form of core/form.py: a polynomial fitted to noisy points.

The machinery's tests run it, because a run takes seconds and no change of the autoencoder can break it.
"""

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.form import Experiment

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from pipeline.params import Params


def run_name(params: "Params") -> dict[str, str]:
    return {"model.degree": f"degree={params.model.degree}", "train.seed": f"seed={params.train.seed}"}


def environment(_params: "Params", device: str) -> dict[str, str]:
    return {"python": platform.python_version(), "device": device}


def load_model(path: str) -> "nn.Module":
    from pipeline.polynomial import load_model

    return load_model(Path(path))


def example_input(_model: "nn.Module") -> "np.ndarray":
    import numpy as np

    return np.zeros((2, 1), np.float32)


def summary() -> str:
    return f"Test MSE {json.loads(Path('reports/evaluate.json').read_text())['test']['mse']:.4f}"


EXPERIMENT = Experiment(
    name="toy",
    model_name="polynomial",
    model_path="models/polynomial.safetensors",
    data_folder="data/prepared/",
    test_path="data/prepared/test.npy",
    run_name=run_name,
    environment=environment,
    load_model=load_model,
    example_input=example_input,
    summary=summary,
    by_epoch={"train_mse": "train MSE", "valid_mse": "valid MSE"},
    examples="points",
    default_grid=("model.degree=1,2,3", "train.seed=0,1"),
    default_axis="model.degree",
    metric_label="MSE",
    folded=("test.part_mse.", "Single parts"),
)
