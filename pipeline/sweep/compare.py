"""Compare runs by one parameter: mean ± std over seeds with reference lines, as a table and figures.

    python -m pipeline.sweep.compare [--by PARAMETER] [--sweep NAME] [--redraw]

Reads MLflow's store and writes to reports/compare/: runs.csv with a line for every run that is used, table.csv and
table.md, a figure named after the metric to report, and, if the weights are in the store, reconstructions.png and the
page index.html, which git ignores. --redraw makes the table and that figure from runs.csv, without a store. The runs of
a curve differ only in the parameter, the seed and `evaluate`. They share the code of the training and of the stages
before it, all other parameters including `data`, and the environment (processor, torch, threads, the precision that
`auto` chose). Excluded runs are listed. If different versions of the code evaluated the runs, the table notes it.
"""

import argparse
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from pipeline.core.dvcfiles import md5s
from pipeline.core.errors import PipelineError, run_command
from pipeline.core.files import write_out
from pipeline.core.git import git_or_none
from pipeline.core.metrics import Metric, load_metrics, with_role
from pipeline.core.params_file import short
from pipeline.core.repository import main_root
from pipeline.experiment import EXPERIMENT
from pipeline.params import load_params
from pipeline.sweep.curves import (
    FOLDER,
    MAIN,
    RUNS_PATH,
    SEED,
    Curve,
    compared,
    find_runs,
    format_value,
    load_runs,
    number_or_text,
    split_into_curves,
    summarise,
)
from pipeline.tracking.store import is_server, open_store, store_name, tracking_uri

if TYPE_CHECKING:
    from torch import nn

TABLE_PATH = FOLDER / "table.csv"
MARKDOWN_PATH = FOLDER / "table.md"
RECONSTRUCTIONS_PATH = FOLDER / "reconstructions.png"
PAGE_PATH = FOLDER / "index.html"
COLORS = matplotlib.color_sequences["petroff10"]
MARKERS = "osD^v"
LINE_STYLES = (".--", ":", "-.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--by", default=EXPERIMENT.default_axis, help="the parameter on the x-axis (default: %(default)s)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--sweep", help="only runs of this sweep")
    source.add_argument("--redraw", action="store_true", help=f"draw from {RUNS_PATH}, without a store")
    arguments = parser.parse_args()

    runs = load_runs(RUNS_PATH) if arguments.redraw else find_runs(arguments.sweep)
    curves, left_out = split_into_curves(runs, arguments.by, load_params().flat())
    for reason in left_out:
        print(f"left out: {reason}")
    if not arguments.redraw:
        used = pd.concat([curve.runs for curve in curves])
        write_out(RUNS_PATH, used.to_csv(index=False))
        for path in (RECONSTRUCTIONS_PATH, PAGE_PATH):
            path.unlink(missing_ok=True)  # may be of other runs
    table = summarise(curves, arguments.by)
    # DVC's plots cannot draw a column with a dot in its name.
    by_name = table.rename(columns={arguments.by: short(arguments.by)})
    write_out(TABLE_PATH, by_name.to_csv(index=False, float_format="%.6g"))
    changed = changed_parameters(curves[0], arguments.by)
    write_out(MARKDOWN_PATH, as_markdown(table, curves, arguments.by, changed))
    reported = with_role("report", load_metrics())[1].column
    save_figure(draw_metrics(table, curves, arguments.by), FOLDER / f"{reported}.png")
    if not arguments.redraw and (EXPERIMENT.draw_models or EXPERIMENT.compare_page):
        from mlflow.exceptions import MlflowException

        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        try:
            show_models(curves[0], table, arguments.by)
        except (PipelineError, MlflowException, OSError) as error:
            print(f"the models are not shown: {error}")
    print(f"{sum(len(curve.runs) for curve in curves)} runs on {len(curves)} curve(s): {FOLDER}/\n")
    print(MARKDOWN_PATH.read_text())
    if git_or_none("status", "--porcelain", "--untracked-files=no", "--", str(FOLDER)):
        print(f"This replaced the committed comparison. To bring it back: git restore {FOLDER}")


def changed_parameters(curve: Curve, by: str) -> dict[str, str]:
    """Return the parameters of a curve's runs that differ from params.yaml, without `by`, the seed and `evaluate`."""
    runs = curve.runs
    ours = load_params().flat()
    names = [name for name in ours if name in runs and name not in (by, SEED) and not name.startswith("evaluate.")]
    return {
        name: format_value(runs[name].iloc[0])
        for name in names
        if format_value(runs[name].iloc[0]) != format_value(number_or_text(str(ours[name])))
    }


def as_markdown(
    table: pd.DataFrame, curves: list[Curve], by: str, changed: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Format the table as Markdown, with notes on the data, hardware and versions of the runs.

    Args:
        changed: the parameters of the first curve that differ from params.yaml.
    """
    metrics = load_metrics()
    (_, select), (_, report) = with_role("select", metrics), with_role("report", metrics)
    ranked = select.sign() * table[select.column]
    best = set(ranked.dropna().groupby(table["curve"]).idxmax())
    labelled = [metric for metric in compared(metrics).values() if metric.label]
    several = ["runs"] if len(curves) > 1 else []
    headings = [*several, by, "seeds", *(str(metric.label) for metric in labelled)]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for line, row in enumerate(table.to_dict("records")):
        cells = [cell_of(row, metric, metrics) for metric in labelled]
        if line in best:
            place = labelled.index(select)
            cells[place] = f"**{cells[place]}**"
        label = [row["curve"]] if several else []
        lines.append("| " + " | ".join([*label, format_value(row[by]), str(row["n_seeds"]), *cells]) + " |")
    runs = pd.concat([curve.runs for curve in curves])
    machines = runs[["hardware", "threads", "torch"]].drop_duplicates().dropna()
    trained_on = "; ".join(
        f"{row.hardware}, {row.threads} thread{'' if str(row.threads) == '1' else 's'}, torch {row.torch}"
        for row in machines.itertuples()
    )
    sentences = [
        f"Mean ± sample standard deviation over training seeds, on {data_of(runs)}.",
        f"Choose by the {select.label} (in bold: the best of each curve), and report the {report.label}.",
        EXPERIMENT.comparison_note,
        f"Trained on {trained_on or 'unknown hardware'}.",
    ]
    notes = " ".join(filter(None, sentences))
    if changed:
        differing = ", ".join(f"`{name}={value}`" for name, value in changed.items())
        notes += f" Unlike in params.yaml: {differing}."
    if (n_versions := runs["evaluation_code"].nunique()) > 1:
        notes += f" The runs were evaluated by {n_versions} versions of the code, so that test metrics may not compare."
    references = [
        f"{metric.note}: {values[0]:{metric.format}}"
        for column, metric in compared(metrics).items()
        if metric.note and len(values := table[column].dropna().unique()) == 1
    ]
    for curve in curves:
        if curve.label not in (MAIN, curve.difference):
            notes = f"`{curve.label}`: {curve.difference}.\n\n{notes}"
    if references:
        notes += f" For comparison, {'; '.join(references)}."
    return "\n".join([*lines, "", notes]) + "\n"


def cell_of(row: dict[Any, Any], metric: Metric, metrics: dict[str, Metric]) -> str:
    """Return `0.033 ± 0.001` with unit and, in parentheses, the metric `beside`; empty if no run has the metric."""
    if not (text := mean_and_std(row, metric)):
        return ""
    other = metrics[metric.beside] if metric.beside else None
    beside = f" ({format_number(row[other.column], other.format)})" if other else ""
    return text + (f" {metric.unit}" if metric.unit else "") + beside


def mean_and_std(row: dict[Any, Any], metric: Metric) -> str:
    std = format_number(row.get(f"{metric.column}_std"), metric.format)
    return format_number(row[metric.column], metric.format) + (f" ± {std}" if std else "")


def data_of(runs: pd.DataFrame) -> str:
    """Return the titles of the data sets that the runs were trained on."""
    parameter = EXPERIMENT.data_parameter
    names = [EXPERIMENT.data_name(load_params())] if parameter is None else runs[parameter].unique()
    return ", ".join(map(EXPERIMENT.data_title, names))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG without date or version, so that equal figures have equal bytes."""
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png", metadata={"Software": None})
    write_out(path, content.getvalue())


def format_number(value: Any, form: str) -> str:
    """Return the formatted number, or an empty string for a missing one."""
    return "" if pd.isna(value) else f"{value:{form}}"


def draw_metrics(table: pd.DataFrame, curves: list[Curve], by: str) -> Figure:
    """Plot two panels against `by`: the metric that selects, and the one to report with the reference lines.

    The axes are logarithmic if the values allow it. Both panels have the same unit, `EXPERIMENT.metric_label`, or each
    has its own.
    """
    metrics = load_metrics()
    roles = [with_role(role, metrics)[1] for role in ("select", "report")]
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    one_unit = bool(EXPERIMENT.metric_label)
    panels = figure.subplots(1, 2, sharex=True, sharey=one_unit)
    values = table[by].drop_duplicates().tolist()
    is_number = all(isinstance(value, int | float) for value in values)
    places: Callable[[Any], Any] = (lambda value: value) if is_number else values.index
    for ax, metric in zip(panels, roles, strict=True):
        for number, (label, lines) in enumerate(table.groupby("curve", sort=False)):
            differs = str(label).replace("; ", "\n")
            ax.errorbar(
                [places(value) for value in lines[by]],
                lines[metric.column],
                lines[f"{metric.column}_std"].fillna(0),
                label=EXPERIMENT.model_name if number == 0 else f"{EXPERIMENT.model_name}, {differs}",
                color=COLORS[number],
                marker=MARKERS[number],
                capsize=4,
                linewidth=2,
            )
    valid, test = panels
    references = {column: metric.line for column, metric in compared(metrics).items() if metric.line}
    for (column, name), style in zip(references.items(), LINE_STYLES, strict=False):
        if (table.groupby(by)[column].nunique() > 1).any():
            continue  # the curves differ in it, so that no single line is true of all
        lines = table.drop_duplicates(by).sort_values(by)
        test.plot([places(value) for value in lines[by]], lines[column], style, color="0.35", label=name)
    for ax, metric in zip(panels, roles, strict=True):
        columns = [str(each.column) for each in (roles if one_unit else [metric])]
        if (table[columns] > 0).all(axis=None):
            ax.set_yscale("log")
            ax.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
            ax.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        if ax is valid or not one_unit:
            ax.set_ylabel(EXPERIMENT.metric_label or str(metric.label), fontsize=12)
    if is_number and min(values) > 0 and max(values) >= 4 * min(values):
        test.set_xscale("log", base=2)
    test.set_xticks([places(value) for value in values], [format_value(value) for value in values])
    test.xaxis.set_minor_locator(NullLocator())
    valid.set_title("validation: choose by it", fontsize=12)
    test.set_title("test: report it", fontsize=12)
    figure.supxlabel(EXPERIMENT.axis_labels.get(by, by), fontsize=12)
    for ax in panels:
        ax.tick_params(which="both", labelsize=11)
        ax.grid(which="both", alpha=0.3)
    test.legend(fontsize=10, loc="lower left")
    runs = pd.concat([curve.runs for curve in curves])
    least, most = int(table["n_seeds"].min()), int(table["n_seeds"].max())
    span = f"{least}" if least == most else f"{least} to {most}"
    seeds = "one training seed" if most == 1 else f"mean ± std of {span} training seeds"
    figure.suptitle(f"{data_of(runs)}, {seeds}", fontsize=13)
    return figure


def show_models(curve: Curve, table: pd.DataFrame, by: str) -> None:
    """Write the figure and the page of a curve's models: for each value of `by`, the run with the lowest seed.

    Raises:
        PipelineError, MlflowException, OSError: as in `models_of`.
    """
    models = models_of(curve, by)
    if EXPERIMENT.draw_models is not None:
        save_figure(EXPERIMENT.draw_models(models), RECONSTRUCTIONS_PATH)
    if EXPERIMENT.compare_page is not None:
        write_out(PAGE_PATH, EXPERIMENT.compare_page(models, page_content(curve, table, by)))
        print(f"the same test data at every size: {PAGE_PATH}")


def page_content(curve: Curve, table: pd.DataFrame, by: str) -> dict[str, Any]:
    """Return what the page shows of a curve besides its models, as JSON.

    Returns:
        data, axis, metric: titles of the data, of the parameter `by`, and of the metrics' unit.
        select, report: the labels of the two metrics with these roles.
        headings: the columns of numbers.
        rows: one for each value of `by`: its label and value, the cells below the headings, [mean, standard deviation
            over seeds] under `select` and `report`, the reference lines by name, and the runs by name with the address
            of their page in MLflow. What is missing is None.
    """
    metrics = load_metrics()
    roles = {role: with_role(role, metrics)[1] for role in ("select", "report")}
    labelled = [metric for metric in compared(metrics).values() if metric.label]
    lines = {metric.line: column for column, metric in compared(metrics).items() if metric.line}
    pages = pages_of_runs()
    rows = []
    for row in table[table["curve"] == curve.label].to_dict("records"):
        runs = curve.runs[curve.runs[by] == row[by]]
        rows.append(
            {
                "label": label_of(row[by], by),
                "value": row[by] if isinstance(row[by], int | float) else str(row[by]),
                "cells": [cell_of(row, metric, metrics) for metric in labelled],
                "lines": {name: number_or_none(row[column]) for name, column in lines.items()},
                "runs": {name: pages and f"{pages}/{run}" for name, run in zip(runs["name"], runs["run"], strict=True)},
                **{role: pair_of(row, metric) for role, metric in roles.items()},
            }
        )
    return {
        "data": data_of(curve.runs),
        "axis": EXPERIMENT.axis_labels.get(by, by),
        "metric": EXPERIMENT.metric_label,
        "headings": [metric.label for metric in labelled],
        "rows": rows,
        **{role: metric.label for role, metric in roles.items()},
    }


def pair_of(row: dict[Any, Any], metric: Metric) -> tuple[float, float | None] | None:
    """Return mean and standard deviation; None without a mean."""
    mean, std = row[metric.column], row.get(f"{metric.column}_std")
    return None if pd.isna(mean) else (mean, number_or_none(std))


def number_or_none(value: Any) -> float | None:
    return None if pd.isna(value) else value


def label_of(value: Any, by: str) -> str:
    """Return a model's label: `k = 2`."""
    return f"{EXPERIMENT.symbols.get(by, short(by))} = {format_value(value)}"


def pages_of_runs() -> str | None:
    """Return the address below which a tracking server has the runs' pages; None for a store without a server."""
    uri = tracking_uri(main_root())
    return f"{store_name(uri, main_root())}/#/experiments/{open_store()[1]}/runs" if is_server(uri) else None


def models_of(curve: Curve, by: str) -> "dict[str, nn.Module]":
    """Return {label: model} from the store: for each value of `by`, the run with the lowest seed.

    Raises:
        PipelineError: the runs were measured on other test data, or the weights do not fit this code.
        MlflowException, OSError: the weights are not in the store.
    """
    client, _ = open_store()
    chosen = curve.runs.sort_values(SEED).drop_duplicates(by).sort_values(by)
    context = Path(EXPERIMENT.test_path).stem
    models = {}
    for run_id, value in zip(chosen["run"], chosen[by], strict=True):
        inputs = client.get_run(run_id).inputs
        entries = inputs.dataset_inputs if inputs else []
        digests = {entry.dataset.digest for entry in entries if entry.tags and entry.tags[0].value == context}
        if not digests or digests != set(md5s([EXPERIMENT.test_path]).values()):
            raise PipelineError(f"{EXPERIMENT.test_path} is not the data that the runs were measured on")
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(run_id, EXPERIMENT.model_path, folder)
            models[label_of(value, by)] = EXPERIMENT.load_model(path)
    return models


if __name__ == "__main__":
    run_command(main)
