"""This experiment, described in the form of core/form.py. Another experiment fills in the same form.

`tracking`, `sweep` and `review` read it. They, `server` and `core` import neither `autoencoder` nor a stage.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.form import Experiment

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from mlflow.models import Model
    from torch import nn

    from pipeline.params import Params


DESCRIPTION = """\
Autoencoders for MNIST. A run is one training with its evaluation.

- `valid/best_mse` selects sizes and settings; `test/mse` is the number to report. Both are means over images and
  pixels, with pixels in 0…1. Lower is better.
- `test/pca_mse` is the test MSE of PCA with as many components as the bottleneck has dimensions.
- `accuracy/*/codes` is the test accuracy of a classifier on the codes, next to one on PCA codes and one on pixels.
- The artifact `models/explorer.html` is a page on which to move through the latent space.

To compare bottleneck sizes, select their runs and click *Compare*, or run `make compare`: it writes means ± standard
deviations over seeds to `reports/compare/`.
"""


def notice(params: "Params") -> str | None:
    """Return a note for the user about the run's data, or None."""
    if params.data.dataset != "digits":
        return None
    return (
        "note: this is scikit-learn's digits (1,797 small images), not MNIST; "
        "to go back to MNIST: dvc exp run -S data.dataset=mnist"
    )


def how_to_run(params: "Params") -> tuple[str, ...]:
    """Return DVC's command for `make run`. It uses scikit-learn's digits if MNIST is chosen but not available."""
    from pipeline.autoencoder import datasets
    from pipeline.core import dvcfiles
    from pipeline.core.repository import RAW_FOLDER, main_root

    if (
        params.data.dataset != "mnist"
        or dvcfiles.is_up_to_date("prepare")
        or datasets.is_cached(main_root() / RAW_FOLDER)
        or datasets.reachable_mirror() is not None
    ):
        return ("repro",)
    print(
        "MNIST cannot be reached: no mirror answers (set MNIST_MIRROR to use another one). "
        "Running on scikit-learn's digits instead: dvc exp run -S data.dataset=digits"
    )
    return ("exp", "run", "-S", "data.dataset=digits")


def summary() -> str:
    """Return a run's results in one line, from the files that it wrote."""
    import json

    metrics = json.loads(Path("reports/evaluate.json").read_text())["test"]
    return (
        f"Test MSE {metrics['mse']:.4f} ({metrics['psnr_db']:.2f} dB); PCA of the same size "
        f"{metrics['pca_mse']:.4f}, mean image {metrics['mean_image_mse']:.4f}"
    )


def data_title(name: str) -> str:
    """Return a data set's name as figures show it."""
    from pipeline.autoencoder.figures import DATASET_TITLES

    return DATASET_TITLES.get(name, name)


def run_name(params: "Params") -> dict[str, str]:
    """Return the parts with which every run's name begins, by parameter. The part of a default value is empty."""
    return {
        "data.dataset": "" if params.data.dataset == "mnist" else params.data.dataset,
        "model.bottleneck_size": f"k={params.model.bottleneck_size}",
        "train.seed": f"seed={params.train.seed}",
    }


def environment(params: "Params", device: str) -> dict[str, str]:
    """Return what decides a training's last bits besides parameters, data and code, and what `auto` chose."""
    import torch

    from pipeline.autoencoder.environment import fingerprint
    from pipeline.autoencoder.trainer import resolve_precision

    precision = str(resolve_precision(params.train.precision, torch.device(device)))
    return fingerprint(device) | {"precision": precision.removeprefix("torch.")}


def load_model(path: str) -> "nn.Module":
    """Load the model in a file that the training wrote."""
    from pipeline.autoencoder.model import load_model

    return load_model(path)


def draw_models(models: "dict[str, nn.Module]") -> "Figure":
    """Draw a curve's models, {label: model}, for `make compare`: reconstructions of each digit's first test image.

    Raises:
        PipelineError: EXPERIMENT.test_path is missing or damaged.
    """
    import numpy as np
    import torch

    from pipeline.autoencoder.figures import reconstructions_by_model
    from pipeline.autoencoder.splits import load_split

    test = load_split(Path(EXPERIMENT.test_path))
    pixels = test.pixels()[[int(np.flatnonzero(test.labels == digit)[0]) for digit in range(10)]]
    with torch.no_grad():
        by_model = {label: model(torch.from_numpy(pixels)).numpy() for label, model in models.items()}
    return reconstructions_by_model(pixels, by_model)


def compare_page(models: "dict[str, Any]", content: dict[str, Any]) -> str:
    """Return the page of `make compare`, with a curve's models, {label: model}.

    Raises:
        PipelineError: EXPERIMENT.test_path is missing or damaged.
    """
    from pipeline.autoencoder.comparison import comparison
    from pipeline.autoencoder.splits import load_split

    title = f"{content['data']}: what does the {content['axis']} buy?"
    return comparison(title, models, content, load_split(Path(EXPERIMENT.test_path)))


def example_input(_model: "nn.Module") -> "np.ndarray":
    """Return input for the model: two examples, so that the number of examples stays free."""
    import numpy as np

    from pipeline.autoencoder.model import INPUT_SIZE

    return np.zeros((2, INPUT_SIZE), np.float32)


def save_for_mlflow(weights: str, folder: str, description: "Model") -> None:
    """Write the model in MLflow's format to the new folder `folder`: it reconstructs, encodes and decodes."""
    from pipeline.autoencoder.served_model import save_for_mlflow

    save_for_mlflow(weights, folder, description)


EXPERIMENT = Experiment(
    name="mnist-autoencoder",
    model_name="autoencoder",
    description=DESCRIPTION,
    model_path="models/autoencoder.safetensors",
    data_folder="data/prepared/",
    test_path="data/prepared/test.safetensors",
    run_name=run_name,
    environment=environment,
    load_model=load_model,
    example_input=example_input,
    save_for_mlflow=save_for_mlflow,
    summary=summary,
    data_title=data_title,
    notice=notice,
    how_to_run=how_to_run,
    by_epoch={"train_mse": "train MSE", "valid_mse": "valid MSE"},
    examples="images",
    default_grid=("model.bottleneck_size=2,4,8,16,32,64", "train.seed=0,1,2"),
    default_axis="model.bottleneck_size",
    axis_labels={"model.bottleneck_size": "bottleneck size k (latent dimensions)"},
    symbols={"model.bottleneck_size": "k"},
    metric_label="MSE per pixel (pixels 0…1)",
    comparison_note="The weights are those with the best validation MSE. PSNR, ratio and accuracies are of the test "
    "set. The classifiers were fitted on the training images' codes, those in parentheses on PCA codes of the same "
    "size.",
    draw_models=draw_models,
    compare_page=compare_page,
    folded=("test.digit_mse.", "Single digits"),
)
