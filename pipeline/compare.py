"""Compare runs by one parameter: mean ± std over seeds, next to PCA and the mean image, as a table and figures.

    python -m pipeline.compare [--by model.bottleneck_size] [--sweep NAME] [--redraw]

Reads MLflow's store and writes reports/compare/: runs.csv with a line for every run that is used, table.csv and
table.md, test_mse.png, and reconstructions.png where the weights are in the store. --redraw makes the table and
test_mse.png from runs.csv, without a store. A curve's runs differ only in the parameter, the seed and `evaluate`: they
share the code of the stages, the other parameters, `data` among them, and what they ran on (processor, torch, threads,
the precision that `auto` chose). Excluded runs are listed.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from pipeline.sweep import SWEEP_TAG, sweeps_of

if TYPE_CHECKING:
    from mlflow.entities import Run

FOLDER = Path("reports/compare")
RUNS_PATH = FOLDER / "runs.csv"
TABLE_PATH = FOLDER / "table.csv"
MARKDOWN_PATH = FOLDER / "table.md"
FIGURE_PATH = FOLDER / "test_mse.png"
RECONSTRUCTIONS_PATH = FOLDER / "reconstructions.png"
TEST_PATH = "data/prepared/test.safetensors"

SEED = "train.seed"
# A run has more metrics than this; those of the digits, and of every epoch, are not compared.
METRICS = {
    "valid/best_mse": "valid_mse",
    "test/mse": "test_mse",
    "test/psnr_db": "test_psnr_db",
    "test/pca_mse": "pca_mse",
    "test/mean_image_mse": "mean_image_mse",
    "test/ratio_to_pca": "ratio_to_pca",
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
# What decides a result besides the parameters, by the tag that holds it.
ENVIRONMENT = {f"env.{name}": name for name in ("device", "hardware", "threads", "precision", "torch")}
TAGS = {SWEEP_TAG: "sweep", "code": "code"} | ENVIRONMENT
# What of the environment a parameter sets.
SETS = {
    "train.device": ["device", "hardware", "precision"],
    "train.precision": ["precision"],
    "train.threads": ["threads"],
}
MAIN = "main"
MAX_CURVES = 5
COLORS = matplotlib.color_sequences["petroff10"]
MARKERS = "osD^v"


@dataclass(frozen=True)
class Curve:
    """Runs that compare: a short label, in what they differ from the first curve's (empty for that one), the runs."""

    label: str
    difference: str
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
        RECONSTRUCTIONS_PATH.unlink(missing_ok=True)  # of other runs, perhaps
    table = summarise(curves, arguments.by)
    # DVC's plots cannot draw a column with a dot in its name.
    by_name = table.rename(columns={arguments.by: short(arguments.by)})
    write_out(TABLE_PATH, by_name.to_csv(index=False, float_format="%.6g"))
    write_out(MARKDOWN_PATH, as_markdown(table, curves, arguments.by))
    save_figure(draw_mse(table, curves, arguments.by), FIGURE_PATH)
    if not arguments.redraw:
        from mlflow.exceptions import MlflowException

        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        try:
            draw_reconstructions(curves[0], arguments.by)
        except (PipelineError, MlflowException, OSError) as error:
            print(f"no {RECONSTRUCTIONS_PATH}: {error}")
    print(f"{sum(len(curve.runs) for curve in curves)} runs on {len(curves)} curve(s): {FOLDER}/\n")
    print(MARKDOWN_PATH.read_text())


def find_runs(sweep: str | None) -> pd.DataFrame:
    """Read every finished run of the store that has a test MSE: parameters, metrics, sweeps, code and environment.

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
        | {"precision": used_precision(run)}
        | {name: number_or_text(value) for name, value in run.data.params.items()}
        | {column: run.data.metrics.get(name) for name, column in METRICS.items()}
        for run in found
    )


def used_precision(run: "Run") -> str | None:
    """By a run's tag; where an older version made it, by its parameter, and None where that is `auto`."""
    asked = run.data.params.get("train.precision")
    return run.data.tags.get("env.precision", None if asked == "auto" else asked)


def load_runs(path: Path) -> pd.DataFrame:
    """Read the runs that an earlier comparison wrote.

    Raises:
        PipelineError: the file is missing, or an older version wrote it.
    """
    if not path.is_file():
        raise PipelineError(f"{path} is missing; without --redraw it is made from MLflow's store")
    runs = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    numbers = {"started", *METRICS.values()}
    if lacking := sorted({"run", "name", *TAGS.values(), *numbers} - set(runs)):
        raise PipelineError(
            f"{path} has no column {', '.join(lacking)}; without --redraw it is made from MLflow's store"
        )
    for column in map(str, runs):
        if column in numbers:
            runs[column] = runs[column].map(float, na_action="ignore")
        elif "." in column:  # a parameter; a hash may look like a number and is not one
            runs[column] = runs[column].map(number_or_text, na_action="ignore")
    return runs


def number_or_text(value: str) -> float | str:
    """MLflow keeps every parameter as text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return value


def split_into_curves(runs: pd.DataFrame, by: str, params: dict[str, Any]) -> tuple[list[Curve], list[str]]:
    """Group the runs that differ only in `by`, the seed and `evaluate`.

    First come those with the most values of `by`, of these the ones with the other values of `params`, then the
    newest. Of several runs of one point the newest counts.

    Returns:
        The first MAX_CURVES curves of at least two values each, and a line for each group of runs that is left out.

    Raises:
        PipelineError: `by` is no parameter of the runs, or no runs compare.
    """
    names = [name for name in map(str, runs) if "." in name]
    if by not in names:
        raise PipelineError(f"--by {by}: the runs have no such parameter, but {', '.join(names)}")
    others = [name for name in names if name not in (by, SEED) and not name.startswith("evaluate.")]
    left_out = []
    if n_old := int(runs["code"].isna().sum()):
        left_out.append(f"{n_old} run(s) without the tag `code`, which older versions did not write")
    known = runs.dropna(subset=["code", by]).sort_values("started")
    set_by_axis = SETS.get(by, [])
    same = ["code", *others, *(name for name in ENVIRONMENT.values() if name not in set_by_axis)]
    if not all(isinstance(value, int | float) for value in known[by]):
        known[by] = known[by].map(show)
    newest = known.drop_duplicates([*same, *set_by_axis, by, SEED], keep="last")
    if n_superseded := len(known) - len(newest):
        left_out.append(f"{n_superseded} run(s) of points that a newer run has too")
    groups = []
    for _, group in newest.groupby(same, dropna=False, sort=False):
        if (group.groupby(by)[set_by_axis].nunique() > 1).to_numpy().any():
            left_out.append(
                f"{len(group)} run(s): some have the same {by}, but not the same {' and '.join(set_by_axis)}"
            )
        else:
            groups.append(group)

    def rank(group: pd.DataFrame) -> tuple[int, bool, float]:
        is_own = all(show(group[name].iloc[0]) == show(number_or_text(str(params.get(name)))) for name in others)
        return group[by].nunique(), is_own, group["started"].max()

    groups.sort(key=rank, reverse=True)
    usable = [group for group in groups if group[by].nunique() > 1][:MAX_CURVES]
    if not usable:
        raise PipelineError(
            f"no two of {len(runs)} run(s) differ only in {by} (and the seed); `make sweep` makes some, "
            f"or choose another --by{''.join(f'; left out: {reason}' for reason in left_out)}"
        )
    curves = []
    for group in groups:
        differs = difference(group, usable[0], same)
        if any(group is other for other in usable):
            label = (own_sweep(group, newest) or differs) if differs else MAIN
            curves.append(Curve(label, differs, group.sort_values([by, SEED]).reset_index(drop=True)))
        else:
            values = ", ".join(sorted(map(show, group[by].unique())))
            left_out.append(f"{len(group)} run(s), {by} {values}: {differs}")
    return curves, left_out


def own_sweep(group: pd.DataFrame, runs: pd.DataFrame) -> str | None:
    """The name of the one sweep that all runs of a group belong to and no other run does; None if there is none."""
    sweeps = runs["sweep"].fillna("").map(lambda names: set(sweeps_of({SWEEP_TAG: names})))
    is_ours = runs.index.isin(group.index)
    names = set.intersection(*sweeps[is_ours]) - set().union(*sweeps[~is_ours]) - {"", MAIN}
    return names.pop() if len(names) == 1 else None


def difference(group: pd.DataFrame, first: pd.DataFrame, same: list[str]) -> str:
    """In which parameters, code or environment a group of runs differs from the first one; empty for that one."""
    ours, theirs = group.iloc[0], first.iloc[0]
    changed = [
        name for name in same if ours[name] != theirs[name] and not (pd.isna(ours[name]) and pd.isna(theirs[name]))
    ]
    values = [f"code {ours[name][:6]}" if name == "code" else f"{short(name)}={show(ours[name])}" for name in changed]
    return "; ".join(dict.fromkeys(values))  # train.threads=4 and 4 threads are one difference


def summarise(curves: list[Curve], by: str) -> pd.DataFrame:
    """Count the seeds of each curve and value of `by`; give the metrics' means and sample standard deviations.

    A standard deviation is missing for a single seed, a metric where no run has it.
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
                line[metric] = runs[metric].mean()
                if not metric.endswith(SEEDLESS):
                    line[f"{metric}_std"] = runs[metric].std()
            lines.append(line)
    return pd.DataFrame(lines).astype({"n_parameters": "Int64"})


def as_markdown(table: pd.DataFrame, curves: list[Curve], by: str) -> str:
    """Format the table for people, with what the runs were trained on."""
    best = set(table.dropna(subset=["valid_mse"]).groupby("curve")["valid_mse"].idxmin())
    several = len(curves) > 1
    headings = [
        by,
        "seeds",
        "valid MSE",
        "test MSE",
        "PSNR, dB",
        "PCA's MSE",
        "ratio to PCA",
        "logistic regression (PCA)",
    ]
    headings += ["neighbours (PCA)", "effective rank", "parameters", "training"]
    lines = ["| " + " | ".join([*(["runs"] if several else []), *headings]) + " |"]
    lines.append("|" + "---|" * (len(headings) + several))
    for line, row in enumerate(table.to_dict("records")):
        valid_mse = mean_and_std(row, "valid_mse", ".5f")
        cells = [
            show(row[by]),
            str(row["n_seeds"]),
            f"**{valid_mse}**" if line in best else valid_mse,
            mean_and_std(row, "test_mse", ".5f"),
            mean_and_std(row, "test_psnr_db", ".2f"),
            format_number(row["pca_mse"], ".5f"),
            mean_and_std(row, "ratio_to_pca", ".3f"),
            *(
                f"{mean_and_std(row, probe, '.1%')} ({format_number(row[f'{probe}_pca'], '.1%')})"
                if row[probe] > 0
                else ""
                for probe in ("logistic_regression", "nearest_neighbours")
            ),
            mean_and_std(row, "effective_rank", ".1f"),
            format_number(row["n_parameters"], ",d"),
            mean_and_std(row, "training_seconds", ".0f") + " s" if row["training_seconds"] > 0 else "",
        ]
        lines.append("| " + " | ".join([*([row["curve"]] if several else []), *cells]) + " |")
    runs = pd.concat([curve.runs for curve in curves])
    names = ", ".join(DATASET_TITLES.get(name, name) for name in runs["data.dataset"].unique())
    machines = runs[["hardware", "threads", "torch"]].drop_duplicates().dropna()
    trained_on = "; ".join(f"{row.hardware}, {row.threads} threads, torch {row.torch}" for row in machines.itertuples())
    notes = (
        f"Mean ± sample standard deviation over training seeds, on {names}, of the weights with the best validation "
        "MSE. Choose by the validation MSE (in bold: the lowest of each curve), and report the test MSE. PSNR, ratio "
        "and accuracies are of the test set. The classifiers were fitted on the training images' codes, those in "
        f"parentheses on PCA codes of the same size. Trained on {trained_on or 'unknown hardware'}."
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
    for curve in curves:
        if curve.label not in (MAIN, curve.difference):
            notes = f"`{curve.label}`: {curve.difference}.\n\n{notes}"
    if references:
        notes += f" For comparison, {'; '.join(references)}."
    return "\n".join([*lines, "", notes]) + "\n"


def mean_and_std(row: dict[Any, Any], metric: str, form: str) -> str:
    std = format_number(row[f"{metric}_std"], form)
    return format_number(row[metric], form) + (f" ± {std}" if std else "")


def format_number(value: Any, form: str) -> str:
    """The formatted number, or nothing where it is missing."""
    return "" if pd.isna(value) else f"{value:{form}}"


def show(value: Any) -> str:
    """8 for 8.0, as params.yaml has it."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw_mse(table: pd.DataFrame, curves: list[Curve], by: str) -> Figure:
    """Plot the validation MSE, to choose by, and next to it the test MSE, to report, against `by`.

    The axes are logarithmic where the values allow it. PCA and the mean image are on the test panel.
    """
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    values = table[by].drop_duplicates().tolist()
    is_number = all(isinstance(value, int | float) for value in values)
    places: Callable[[Any], Any] = (lambda value: value) if is_number else values.index
    for ax, metric in zip(panels, ("valid_mse", "test_mse"), strict=True):
        for number, (label, lines) in enumerate(table.groupby("curve", sort=False)):
            differs = str(label).replace("; ", "\n")
            ax.errorbar(
                [places(value) for value in lines[by]],
                lines[metric],
                lines[f"{metric}_std"].fillna(0),
                label="autoencoder" if number == 0 else f"autoencoder, {differs}",
                color=COLORS[number],
                marker=MARKERS[number],
                capsize=4,
                linewidth=2,
            )
    valid, test = panels
    for metric, style in (("pca_mse", ".--"), ("mean_image_mse", ":")):
        if (table.groupby(by)[metric].nunique() > 1).any():
            continue  # the curves differ in it, and none of its values is that of all
        lines = table.drop_duplicates(by).sort_values(by)
        name = "PCA of the same size" if metric == "pca_mse" else "mean image"
        test.plot([places(value) for value in lines[by]], lines[metric], style, color="0.35", label=name)
    test.set_yscale("log")
    test.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    test.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    test.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    if is_number and min(values) > 0 and max(values) >= 4 * min(values):
        test.set_xscale("log", base=2)
    test.set_xticks([places(value) for value in values], [show(value) for value in values])
    test.xaxis.set_minor_locator(NullLocator())
    valid.set_title("validation: choose by it", fontsize=12)
    test.set_title("test: report it", fontsize=12)
    valid.set_ylabel("MSE per pixel (pixels 0…1)", fontsize=12)
    figure.supxlabel("bottleneck size k (latent dimensions)" if by == "model.bottleneck_size" else by, fontsize=12)
    for ax in panels:
        ax.tick_params(which="both", labelsize=11)
        ax.grid(which="both", alpha=0.3)
    test.legend(fontsize=10, loc="lower left")
    runs = pd.concat([curve.runs for curve in curves])
    names = ", ".join(DATASET_TITLES.get(name, name) for name in runs["data.dataset"].unique())
    least, most = int(table["n_seeds"].min()), int(table["n_seeds"].max())
    span = f"{least}" if least == most else f"{least} to {most}"
    seeds = "one training seed" if most == 1 else f"mean ± std of {span} training seeds"
    figure.suptitle(f"{names}, {seeds}", fontsize=13)
    return figure


def draw_reconstructions(curve: Curve, by: str) -> None:
    """Draw the first test image of each digit, and below it what each value of `by` makes of it, with the lowest seed.

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
