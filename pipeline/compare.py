"""Compare runs by one parameter: mean ± std over seeds, beside PCA and the mean image, as a table and figures.

    python -m pipeline.compare [--by model.bottleneck_size] [--sweep NAME] [--redraw]

Reads MLflow's store and writes reports/compare/: runs.csv with a line for every run that is used, table.csv and
table.md, test_mse.png, and reconstructions.png where the weights are in the store. --redraw makes table and figure
from runs.csv alone, without a store. Runs are on one curve if they differ in nothing but the parameter, the seed
and `evaluate`: the same code of the stages, the same other parameters, `data` among them. What is left out is said.
"""

import argparse
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from pipeline.data import load_split
from pipeline.dvcfiles import md5s
from pipeline.errors import PipelineError, run_command
from pipeline.figures import DATASET_TITLES, save_figure
from pipeline.outs import write_out
from pipeline.params import load_params, short
from pipeline.store import open_store, search_all
from pipeline.sweep import sweeps_of

FOLDER = Path("reports/compare")
RUNS_PATH = FOLDER / "runs.csv"
TABLE_PATH = FOLDER / "table.csv"
MARKDOWN_PATH = FOLDER / "table.md"
FIGURE_PATH = FOLDER / "test_mse.png"
RECONSTRUCTIONS_PATH = FOLDER / "reconstructions.png"
TEST_PATH = "data/prepared/test.safetensors"

SEED = "train.seed"
# A row has more metrics than this; those of the digits, and of every epoch, are not compared.
METRICS = {
    "test/mse": "test_mse",
    "test/psnr_db": "test_psnr_db",
    "test/pca_mse": "pca_mse",
    "test/mean_image_mse": "mean_image_mse",
    "test/ratio_to_pca": "ratio_to_pca",
    "valid/best_mse": "valid_mse",
    "accuracy/logistic_regression/codes": "logistic_regression",
    "accuracy/logistic_regression/pca": "logistic_regression_pca",
    "accuracy/logistic_regression/pixels": "logistic_regression_pixels",
    "accuracy/nearest_neighbours/codes": "nearest_neighbours",
    "accuracy/nearest_neighbours/pca": "nearest_neighbours_pca",
    "accuracy/nearest_neighbours/pixels": "nearest_neighbours_pixels",
    "codes/effective_rank": "effective_rank",
    "model/n_parameters": "n_parameters",
    "time/training_seconds": "training_seconds",
}
# How the names of metrics end that do not depend on the seed.
SEEDLESS = ("pca_mse", "mean_image_mse", "n_parameters", "regression_pca", "neighbours_pca", "_pixels")
# What a timing depends on beside the parameters.
TAGS = {"code": "code", "env.hardware": "hardware", "env.threads": "threads", "env.torch": "torch"}
MAX_CURVES = 5
COLORS = matplotlib.color_sequences["petroff10"]
MARKERS = "osD^v"


@dataclass(frozen=True)
class Curve:
    """Runs that compare; the label says in what they differ from the first curve's."""

    label: str
    runs: pd.DataFrame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--by", default="model.bottleneck_size", help="the parameter on the x-axis (default: %(default)s)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--sweep", help="only runs of this sweep")
    source.add_argument("--redraw", action="store_true", help=f"from {RUNS_PATH}, without a store")
    arguments = parser.parse_args()

    runs = load_runs(RUNS_PATH) if arguments.redraw else find_runs(arguments.sweep)
    curves, left_out = split_into_curves(runs, arguments.by, load_params().flat())
    for reason in left_out:
        print(f"left out: {reason}")
    if not arguments.redraw:
        used = pd.concat([curve.runs for curve in curves])
        write_out(RUNS_PATH, used.to_csv(index=False))
    table = summarise(curves, arguments.by)
    write_out(TABLE_PATH, table.to_csv(index=False, float_format="%.6g"))
    write_out(MARKDOWN_PATH, as_markdown(table, curves, arguments.by))
    save_figure(draw_mse(table, curves, arguments.by), FIGURE_PATH)
    if not arguments.redraw:
        from mlflow.exceptions import MlflowException

        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        try:
            draw_reconstructions(curves[0], arguments.by)
        except (PipelineError, MlflowException, OSError) as error:
            print(f"{RECONSTRUCTIONS_PATH} is left as it is: {error}")
    print(f"{sum(len(curve.runs) for curve in curves)} runs on {len(curves)} curve(s): {FOLDER}/\n")
    print(MARKDOWN_PATH.read_text())


def find_runs(sweep: str | None) -> pd.DataFrame:
    """A line for every finished run of the store that has a test MSE: parameters, metrics, and what it ran on.

    Raises:
        PipelineError: there is none.
    """
    client, experiment_id = open_store()
    condition = "attributes.status = 'FINISHED' AND metrics.`test/mse` > 0"
    found = search_all(client, experiment_id, condition)
    if sweep is not None:
        found = [run for run in found if sweep in sweeps_of(run.data.tags)]
    if not found:
        where = "" if sweep is None else f" with the tag sweep = {sweep!r}"
        raise PipelineError(f"the store has no finished run{where}; `make sweep` makes some, --redraw uses {RUNS_PATH}")
    return pd.DataFrame(
        {"run": run.info.run_id, "name": run.info.run_name, "started": run.info.start_time}
        | {column: run.data.tags.get(tag) for tag, column in TAGS.items()}
        | {name: number_or_text(value) for name, value in run.data.params.items()}
        | {column: run.data.metrics.get(name) for name, column in METRICS.items()}
        for run in found
    )


def load_runs(path: Path) -> pd.DataFrame:
    """What an earlier comparison wrote.

    Raises:
        PipelineError: the file is missing.
    """
    if not path.is_file():
        raise PipelineError(f"{path} is missing; without --redraw it is made from MLflow's store")
    runs = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    numbers = {"started", *METRICS.values()}
    for column in runs:
        runs[column] = runs[column].map(float if column in numbers else number_or_text, na_action="ignore")
    return runs


def number_or_text(value: str) -> float | str:
    """MLflow keeps every parameter as text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return value


def split_into_curves(runs: pd.DataFrame, by: str, params: dict[str, Any]) -> tuple[list[Curve], list[str]]:
    """Runs that differ in nothing but `by`, the seed and `evaluate`.

    First come those with the most values of `by`, of these the ones with the other values of `params`, then the
    newest. Of several runs of one point the newest counts.

    Returns:
        The curves, of at least two values each, and a line for what is left out.

    Raises:
        PipelineError: `by` is no parameter of the runs, or no runs compare.
    """
    names = [name for name in map(str, runs) if "." in name]
    if by not in names:
        raise PipelineError(f"--by {by}: the runs have no such parameter, but {', '.join(names)}")
    same = ["code", *(name for name in names if name not in (by, SEED) and not name.startswith("evaluate."))]
    left_out = []
    if n_old := int(runs["code"].isna().sum()):
        left_out.append(f"{n_old} run(s) whose row does not tell the code, made before rows did")
    known = runs.dropna(subset=["code", by]).sort_values("started")
    if not all(isinstance(value, int | float) for value in known[by]):
        known[by] = known[by].map(show)
    newest = known.drop_duplicates([*same, by, SEED], keep="last")
    if n_superseded := len(known) - len(newest):
        left_out.append(f"{n_superseded} run(s) of points that a newer run has too")
    groups = [group for _, group in newest.groupby(same, dropna=False, sort=False)]

    def rank(group: pd.DataFrame) -> tuple[int, bool, float]:
        is_own = all(show(group[name].iloc[0]) == show(number_or_text(str(params.get(name)))) for name in same[1:])
        return group[by].nunique(), is_own, group["started"].max()

    groups.sort(key=rank, reverse=True)
    usable = [group for group in groups if group[by].nunique() > 1][:MAX_CURVES]
    if not usable:
        raise PipelineError(
            f"no two runs differ in {by} (and the seed) alone, out of {len(runs)}: `make sweep`, or another --by"
        )
    curves = []
    for group in groups:
        label = difference(group, usable[0], same)
        if any(group is other for other in usable):
            curves.append(Curve(label, group.sort_values([by, SEED]).reset_index(drop=True)))
        else:
            left_out.append(f"{len(group)} run(s), {by} {', '.join(sorted(map(show, group[by].unique())))}: {label}")
    return curves, left_out


def difference(group: pd.DataFrame, first: pd.DataFrame, same: list[str]) -> str:
    """In which parameters, or code, a group of runs differs from the first one; `main` for that one."""
    ours, theirs = group.iloc[0], first.iloc[0]
    changed = [
        name for name in same if ours[name] != theirs[name] and not (pd.isna(ours[name]) and pd.isna(theirs[name]))
    ]
    values = [f"code {ours[name][:6]}" if name == "code" else f"{short(name)}={show(ours[name])}" for name in changed]
    return "; ".join(values) or "main"


def summarise(curves: list[Curve], by: str) -> pd.DataFrame:
    """For each curve and value of `by` the number of seeds, and the metrics' means and sample standard deviations.

    The latter are missing for a single seed.
    """
    lines = []
    for curve in curves:
        for value, runs in curve.runs.groupby(by):
            line: dict[str, Any] = {
                "curve": curve.label,
                by: value,
                "n_seeds": runs[SEED].nunique(),
            }
            for metric in METRICS.values():
                line[metric] = int(runs[metric].iloc[0]) if metric == "n_parameters" else runs[metric].mean()
                if not metric.endswith(SEEDLESS):
                    line[f"{metric}_std"] = runs[metric].std()
            lines.append(line)
    return pd.DataFrame(lines)


def as_markdown(table: pd.DataFrame, curves: list[Curve], by: str) -> str:
    """The table for people, with what the timings were measured on."""
    several = len(curves) > 1
    headings = [by, "seeds", "test MSE", "PSNR, dB", "PCA's MSE", "ratio to PCA", "logistic regression (PCA)"]
    headings += ["neighbours (PCA)", "effective rank", "parameters", "training"]
    lines = ["| " + " | ".join([*(["runs"] if several else []), *headings]) + " |"]
    lines.append("|" + "---|" * (len(headings) + several))
    for row in table.to_dict("records"):
        cells = [
            show(row[by]),
            str(row["n_seeds"]),
            mean_and_std(row, "test_mse", ".5f"),
            mean_and_std(row, "test_psnr_db", ".2f"),
            f"{row['pca_mse']:.5f}",
            mean_and_std(row, "ratio_to_pca", ".3f"),
            *(
                f"{mean_and_std(row, probe, '.1%')} ({row[f'{probe}_pca']:.1%})" if row[probe] > 0 else ""
                for probe in ("logistic_regression", "nearest_neighbours")
            ),
            mean_and_std(row, "effective_rank", ".1f"),
            f"{row['n_parameters']:,.0f}",
            mean_and_std(row, "training_seconds", ".0f") + " s" if row["training_seconds"] > 0 else "",
        ]
        lines.append("| " + " | ".join([*([row["curve"]] if several else []), *cells]) + " |")
    runs = pd.concat([curve.runs for curve in curves])
    names = ", ".join(DATASET_TITLES.get(name, name) for name in runs["data.dataset"].unique())
    machines = runs[["hardware", "threads", "torch"]].drop_duplicates().dropna()
    timed_on = "; ".join(f"{row.hardware}, {row.threads} threads, torch {row.torch}" for row in machines.itertuples())
    notes = (
        f"Mean ± sample standard deviation over training seeds, on the test set of {names}, of the weights with the "
        "best validation MSE. Accuracies are those of classifiers fitted on the training images' codes, in "
        f"parentheses on PCA codes of the same size. Trained on {timed_on}."
    )
    references = [
        f"{what}: {values[0]:{form}}"
        for what, metric, form in (
            ("the mean image's MSE", "mean_image_mse", ".5f"),
            ("the accuracy of logistic regression on pixels", "logistic_regression_pixels", ".1%"),
            ("that of nearest neighbours on pixels", "nearest_neighbours_pixels", ".1%"),
        )
        if len(values := table[metric].dropna().unique()) == 1
    ]
    if references:
        notes += f" For comparison, {'; '.join(references)}."
    return "\n".join([*lines, "", notes]) + "\n"


def mean_and_std(row: dict[Any, Any], metric: str, form: str) -> str:
    std = row[f"{metric}_std"]
    if math.isnan(row[metric]):
        return ""
    return f"{row[metric]:{form}}" + ("" if math.isnan(std) else f" ± {std:{form}}")


def show(value: Any) -> str:
    """8 for 8.0, as params.yaml has it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw_mse(table: pd.DataFrame, curves: list[Curve], by: str) -> Figure:
    """Test MSE against `by`, both on logarithmic axes where the values allow it, with PCA and the mean image."""
    figure = Figure(figsize=(7.6, 5.2), layout="constrained")
    ax = figure.subplots()
    values = table[by].drop_duplicates().tolist()
    is_number = all(isinstance(value, int | float) for value in values)
    places: Callable[[Any], Any] = (lambda value: value) if is_number else values.index
    for number, (label, lines) in enumerate(table.groupby("curve", sort=False)):
        differs = str(label).replace("; ", "\n")
        ax.errorbar(
            [places(value) for value in lines[by]],
            lines["test_mse"],
            lines["test_mse_std"].fillna(0),
            label="autoencoder" if number == 0 else f"autoencoder,\n{differs}",
            color=COLORS[number],
            marker=MARKERS[number],
            capsize=4,
            linewidth=2,
        )
    for metric, style in (("pca_mse", ".--"), ("mean_image_mse", ":")):
        if (table.groupby(by)[metric].nunique() > 1).any():
            continue  # the curves differ in it, and none of its values is that of all
        lines = table.drop_duplicates(by).sort_values(by)
        name = "PCA of the same size" if metric == "pca_mse" else "mean image"
        ax.plot([places(value) for value in lines[by]], lines[metric], style, color="0.35", label=name)
    ax.set_yscale("log")
    for which in ("major", "minor"):
        ax.tick_params(axis="y", which=which, labelsize=11)
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    ax.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    if is_number and min(values) > 0 and max(values) >= 4 * min(values):
        ax.set_xscale("log", base=2)
    ax.set_xticks([places(value) for value in values], [show(value) for value in values])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("bottleneck size k (latent dimensions)" if by == "model.bottleneck_size" else by, fontsize=12)
    ax.set_ylabel("test MSE per pixel (pixels 0…1)", fontsize=12)
    runs = pd.concat([curve.runs for curve in curves])
    names = ", ".join(DATASET_TITLES.get(name, name) for name in runs["data.dataset"].unique())
    least, most = int(table["n_seeds"].min()), int(table["n_seeds"].max())
    span = f"{least}" if least == most else f"{least} to {most}"
    seeds = "one training seed" if most == 1 else f"mean ± std of {span} training seeds"
    ax.set_title(f"{names}, {seeds}", fontsize=13)
    ax.tick_params(labelsize=11)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=10, loc="lower left")
    return figure


def draw_reconstructions(curve: Curve, by: str) -> None:
    """The first test image of each digit beside what each value of `by` makes of it, with the lowest seed.

    Weights come from the store.

    Raises:
        PipelineError: the test images are not those that the runs were measured on, or the weights are not this code's.
        MlflowException, OSError: the weights are not in the store.
    """
    import torch

    from pipeline.model import load_model

    client, _ = open_store()
    chosen = curve.runs.sort_values(SEED).drop_duplicates(by).sort_values(by)
    rows: list[tuple[str, np.ndarray]] = []
    for run_id, value in zip(chosen["run"], chosen[by], strict=True):
        inputs = client.get_run(run_id).inputs
        entries = inputs.dataset_inputs if inputs else []
        digests = {entry.dataset.digest for entry in entries if entry.tags and entry.tags[0].value == "test"}
        if not digests or digests != set(md5s([TEST_PATH]).values()):
            raise PipelineError(f"{TEST_PATH} is not what the runs were measured on")
        test = load_split(Path(TEST_PATH))
        shown = [int(np.flatnonzero(test.labels == digit)[0]) for digit in range(10)]
        pixels = test.pixels()[shown]
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model = load_model(client.download_artifacts(run_id, "models/autoencoder.safetensors", folder))
            rows.append((show(value), model(torch.from_numpy(pixels)).numpy()))
    image = np.concatenate([pixels, *(images for _, images in rows)]).reshape(-1, 10, 28, 28)
    picture = image.transpose(0, 2, 1, 3).reshape(-1, 280)
    figure = Figure(figsize=(8, 0.65 * (len(rows) + 1) + 0.6), layout="constrained")
    ax = figure.subplots()
    ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
    name = "k" if by == "model.bottleneck_size" else by.partition(".")[2]
    ax.set_yticks(14 + 28 * np.arange(len(image)), ["original", *(f"{name} = {value}" for value, _ in rows)])
    ax.set_xticks([])
    ax.tick_params(length=0, labelsize=11)
    ax.spines[:].set_visible(False)
    ax.set_title("The first test image of each digit, and its reconstructions", fontsize=13)
    save_figure(figure, RECONSTRUCTIONS_PATH)


if __name__ == "__main__":
    run_command(main)
