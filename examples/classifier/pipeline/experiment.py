"""This experiment, described in the form of core/form.py, which explains each entry."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.form import Experiment

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from pipeline.params import Params

TITLES = {"wine": "Italian wines", "breast_cancer": "breast cancer"}


def run_name(params: "Params") -> dict[str, str]:
    """Return the parts of a run's name, as in `hidden=16 seed=0`, by parameter."""
    return {"model.hidden_size": f"hidden={params.model.hidden_size}", "train.seed": f"seed={params.train.seed}"}


def environment(_params: "Params", device: str) -> dict[str, str]:
    """Return versions and hardware."""
    from pipeline.classifier.training import environment

    return environment(device)


def load_model(path: str) -> "nn.Module":
    """Load the classifier in a file that the training wrote."""
    from pipeline.classifier.network import load_model

    return load_model(Path(path))


def example_input(model: "nn.Module") -> "np.ndarray":
    """Two rows of zeros, as wide as the model's table."""
    import numpy as np

    return np.zeros((2, len(model.get_buffer("mean"))), np.float32)


def summary() -> str:
    """Return the test results in one line."""
    test = json.loads(Path("reports/evaluate.json").read_text())["test"]
    return (
        f"Test accuracy {test['accuracy']:.1%}, log-loss {test['log_loss']:.3f}; "
        f"the largest class has {test['share_of_the_largest_class']:.1%}"
    )


EXPERIMENT = Experiment(
    name="table-classifier",
    model_name="classifier",
    model_path="models/classifier.safetensors",
    data_folder="data/prepared/",
    test_path="data/prepared/test.safetensors",
    run_name=run_name,
    environment=environment,
    load_model=load_model,
    example_input=example_input,
    summary=summary,
    data_title=lambda name: TITLES.get(name, name),
    by_epoch={"train_log_loss": "train log-loss", "valid_log_loss": "validation log-loss"},
    examples="rows",
    default_grid=("model.hidden_size=4,16,64", "train.seed=0,1,2"),
    default_axis="model.hidden_size",
    axis_labels={"model.hidden_size": "hidden units"},
    metric_label="log-loss (nats)",
)
