"""The form in which an experiment tells the machinery what it has to know: filled in by pipeline/experiment.py."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Names, paths and functions of an experiment. What has a default may be left out.

    The functions take `params`, the experiment's own `Params`. They import what they need when they are called: most
    commands do without torch.
    """

    # MLflow's experiment, and what its models are called.
    name: str
    model_name: str
    # The stages of dvc.yaml that an MLflow run mirrors: the first one starts it, the second one completes it.
    train: str = "train"
    evaluate: str = "evaluate"
    # What the training writes: the model, and a table with a line for each epoch.
    model_path: str
    history_path: str = "reports/history.csv"
    # What lies in this folder is data: a reproduction must make the same bytes, and with other data no metric compares.
    data_folder: str
    # What the runs of a comparison were measured on; one of that folder's files.
    test_path: str
    # What every run's name begins with, by the parameter that it tells; an empty text goes without saying.
    run_name: Callable[[Any], dict[str, str]]
    # Names and values that tell two trainings apart beside parameters, data and code: versions, hardware, the device.
    environment: Callable[[Any, str], dict[str, str]]
    # The model in a file at model_path, and two examples of what it takes, so that their number stays free.
    load_model: Callable[[str], "nn.Module"]
    example_input: Callable[[], "np.ndarray"]
    # A run's results in a line, from the files that it left.
    summary: Callable[[], str]

    # The parameter that names the data set, its value, and how figures write it.
    data_parameter: str = "data.dataset"
    data_name: Callable[[Any], str] = lambda params: str(params.data.dataset)
    data_title: Callable[[str], str] = str
    # The data that a metric of reports/*.json was measured on, by its dotted name; None: on test_path.
    measured_on: Callable[[str], str] | None = None
    # What a run should say about its data.
    notice: Callable[[Any], str | None] = lambda _: None
    # DVC's command for `make run`.
    how_to_run: Callable[[Any], tuple[str, ...]] = lambda _: ("repro",)
    # Columns of the history that a person sees during the training, with their titles, and what the examples are.
    by_epoch: Mapping[str, str] = field(default_factory=dict)
    examples: str = "examples"
    # What `make sweep` runs, and what `make compare` puts on the x-axis, unless it is told otherwise.
    default_grid: tuple[str, ...] = ("train.seed=0,1,2",)
    default_axis: str = "train.seed"
    # What a parameter is called on an axis, and in short, where its own name does not do.
    axis_labels: Mapping[str, str] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)
    # The unit of the metrics in the figure of `make compare`, and what its table has to explain.
    metric_label: str = ""
    comparison_note: str = ""
    # A second figure of `make compare`, of a curve's models by their labels.
    draw_models: "Callable[[dict[str, nn.Module]], Figure] | None" = None
    # The review folds metrics whose names begin with the first text, under the second one.
    folded: tuple[str, str] | None = None
