"""The interface between an experiment and the pipeline: pipeline/experiment.py fills it in."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.core.dvcfiles import declared
from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from mlflow.models import Model
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Names, paths and functions of an experiment. Fields with a default are optional.

    The functions take `params`, the experiment's own `Params`. They import what they need when called, because most
    commands run without torch.
    """

    # The names of the MLflow experiment and of its models.
    name: str
    model_name: str
    # The MLflow experiment's description, in Markdown, when it is created.
    description: str = ""
    # The stages of dvc.yaml that an MLflow run mirrors: `train` starts the run, `evaluate` completes it.
    train: str = "train"
    evaluate: str = "evaluate"
    # What training writes: the model, and a table with one line per epoch.
    model_path: str
    history_path: str = "reports/history.csv"
    # The folder of the data, ending in `/`. A reproduction must produce the same bytes; other data are not comparable.
    data_folder: str
    # The file in data_folder on which the runs of a comparison are measured. Metrics `valid.…` are of the file `valid`
    # next to it, if there is one.
    test_path: str
    # The parts that start every run's name, by parameter; an empty part is omitted.
    run_name: Callable[[Any], dict[str, str]]
    # {name: value} that distinguish two trainings besides parameters, data and code: versions, hardware, the device.
    # `device`, `hardware`, `threads`, `precision` and `torch` also keep runs apart in `make compare`.
    environment: Callable[[Any, str], dict[str, str]]
    # Load the model from a file; return two example inputs: two, so that the exported batch size stays variable.
    load_model: Callable[[str], "nn.Module"]
    example_input: Callable[["nn.Module"], "np.ndarray"]
    # Write the model in MLflow's format: the file of the weights, a new folder, MLflow's `Model`. Without it, `forward`
    # is exported with torch.export.
    save_for_mlflow: "Callable[[str, str, Model], None] | None" = None
    # A one-line summary of a run's results, read from its output files.
    summary: Callable[[], str]

    # The parameter that names the data set (None: there is only one), its value, and its title in figures.
    data_parameter: str | None = "data.dataset"
    data_name: Callable[[Any], str] = lambda params: str(params.data.dataset)
    data_title: Callable[[str], str] = str
    # A notice about the data that a run prints.
    notice: Callable[[Any], str | None] = lambda _: None
    # The arguments of the DVC command behind `make run`.
    how_to_run: Callable[[Any], tuple[str, ...]] = lambda _: ("repro",)
    # The history's columns shown during training, with their titles, and the word for the examples.
    by_epoch: Mapping[str, str] = field(default_factory=dict)
    examples: str = "examples"
    # The default grid of `make sweep`, and the default x-axis of `make compare`.
    default_grid: tuple[str, ...] = ("train.seed=0,1,2",)
    default_axis: str = "train.seed"
    # Axis labels and short symbols of parameters whose own name is not suitable.
    axis_labels: Mapping[str, str] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)
    # The quantity and unit of both metrics with a role, for the figure of `make compare`. If they are two quantities,
    # leave it empty: each panel then has its own axis and its metric's label. And a note for the table.
    metric_label: str = ""
    comparison_note: str = ""
    # Draw a second figure of `make compare` from a curve's models, by label.
    draw_models: "Callable[[dict[str, nn.Module]], Figure] | None" = None
    # Write a page of `make compare`, HTML, from a curve's models and what `compare.page_content` returns.
    compare_page: "Callable[[dict[str, nn.Module], dict[str, Any]], str] | None" = None
    # (prefix, title): the review folds metrics with this prefix under this title.
    folded: tuple[str, str] | None = None

    def measured_on(self, metric: str, data: Collection[str]) -> str:
        """Return the path of the data behind a metric of reports/*.json.

        For `valid.…` it is the file `valid` next to `test_path`, if `data` has it, and `test_path` otherwise.
        """
        valid = str(PurePosixPath(self.test_path).with_stem("valid"))
        return valid if metric.startswith("valid.") and valid in data else self.test_path

    def check(self, parameters: Collection[str]) -> None:
        """Check the form against the names of the parameters and dvc.yaml.

        Raises:
            PipelineError: one of them lacks what the form names or the pipeline needs.
        """
        needed = ["train.seed", "train.device", "train.threads", *filter(None, [self.data_parameter])]
        if missing := [name for name in needed if name not in parameters]:
            hint = " or set `data_parameter` to None" if missing == [self.data_parameter] else ""
            raise PipelineError(f"pipeline/params.py has no {', '.join(missing)}: add it{hint} (pipeline/core/form.py)")
        outs = declared(self.train)["outs"]
        if missing := [path for path in (self.model_path, self.history_path) if path not in outs]:
            names = ", ".join(missing)
            raise PipelineError(
                f"pipeline/experiment.py names {names}, which is not an output of {self.train} in dvc.yaml"
            )
