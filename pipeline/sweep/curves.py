"""Read runs from the store or from runs.csv, split them into curves of comparable runs, and summarise the curves."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.core.errors import PipelineError
from pipeline.core.metrics import Metric, in_mlflow, load_metrics, with_role
from pipeline.core.params_file import short
from pipeline.core.repository import COMPARISON
from pipeline.tracking.store import open_store, search_all
from pipeline.tracking.tags import SWEEP_TAG, sweeps_of

if TYPE_CHECKING:
    from mlflow.entities import Run

FOLDER = COMPARISON
RUNS_PATH = FOLDER / "runs.csv"
SEED = "train.seed"
# {tag: column} of what decides a result besides the parameters.
ENVIRONMENT = {f"env.{name}": name for name in ("device", "hardware", "threads", "precision", "torch")}
TAGS = {SWEEP_TAG: "sweep", "code": "code", "evaluation.code": "evaluation_code"} | ENVIRONMENT
# The columns of the environment that a parameter sets.
SETS = {
    "train.device": ["device", "hardware", "precision"],
    "train.precision": ["precision"],
    "train.threads": ["threads"],
}
MAIN = "main"
MAX_CURVES = 5


@dataclass(frozen=True)
class Curve:
    """Comparable runs, with a short label and their difference from the first curve (empty for the first itself)."""

    label: str
    difference: str
    runs: pd.DataFrame


def find_runs(sweep: str | None) -> pd.DataFrame:
    """Read parameters, metrics and tags of every finished run in the store that has the metric to report.

    Raises:
        PipelineError: there is no such run.
    """
    client, experiment_id = open_store()
    metrics = load_metrics()
    reported = in_mlflow(with_role("report", metrics)[0])
    found = search_all(client, experiment_id, "attributes.status = 'FINISHED'")
    found = [run for run in found if reported in run.data.metrics]
    known = sorted({name for run in found for name in sweeps_of(run.data.tags)})
    if sweep is not None:
        found = [run for run in found if sweep in sweeps_of(run.data.tags)]
    if not found and sweep is not None and known:
        raise PipelineError(f"no finished run is of the sweep {sweep!r}; there are {', '.join(map(repr, known))}")
    if not found:
        where = "" if sweep is None else f" and the tag sweep = {sweep!r}"
        raise PipelineError(
            f"the store has no finished run with the metric {reported}{where}; `make sweep` creates some, "
            f"--redraw uses {RUNS_PATH}"
        )
    return pd.DataFrame(
        {"run": run.info.run_id, "name": run.info.run_name, "started": run.info.start_time}
        | {column: run.data.tags.get(tag) for tag, column in TAGS.items()}
        | {"precision": used_precision(run)}
        | {name: number_or_text(value) for name, value in run.data.params.items()}
        | {metric.column: run.data.metrics.get(in_mlflow(name)) for name, metric in metrics.items() if metric.column}
        for run in found
    )


def compared(metrics: dict[str, Metric]) -> dict[str, Metric]:
    """Return {column: metric} of the metrics that have a column."""
    return {metric.column: metric for metric in metrics.values() if metric.column}


def used_precision(run: "Run") -> str | None:
    """Return the precision from a run's tag. Without the tag (older versions): the parameter, or None for `auto`."""
    asked = run.data.params.get("train.precision")
    return run.data.tags.get("env.precision", None if asked == "auto" else asked)


def load_runs(path: Path) -> pd.DataFrame:
    """Read the runs that an earlier comparison wrote.

    Raises:
        PipelineError: the file is missing, or lacks columns because an older version wrote it.
    """
    if not path.is_file():
        raise PipelineError(f"{path} is missing; without --redraw it is made from MLflow's store")
    runs = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    runs = runs.reindex(columns=list(dict.fromkeys([*runs, "evaluation_code"])))  # older versions did not write it
    numbers = {"started", *compared(load_metrics())}
    if lacking := sorted({"run", "name", *TAGS.values(), *numbers} - set(runs)):
        raise PipelineError(
            f"{path} has no column {', '.join(lacking)}; without --redraw it is made from MLflow's store"
        )
    for column in map(str, runs):
        if column in numbers:
            runs[column] = runs[column].map(float, na_action="ignore")
        elif "." in column:  # a parameter; a hash may look like a number but is text
            runs[column] = runs[column].map(number_or_text, na_action="ignore")
    return runs


def number_or_text(value: str) -> float | str:
    """Return a parameter as a number if it is one: MLflow stores every parameter as text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return value


def split_into_curves(runs: pd.DataFrame, by: str, params: dict[str, Any]) -> tuple[list[Curve], list[str]]:
    """Group the runs that differ only in `by`, the seed and `evaluate`.

    Curves with more values of `by` come first; among equals, those whose other parameters equal `params`, then the
    newest. Of several runs of one trial only the newest counts.

    Returns:
        The first MAX_CURVES curves with at least two values each, and a line for each group of runs that is left out.

    Raises:
        PipelineError: the runs have no parameter `by`, or no two runs are comparable.
    """
    names = [name for name in map(str, runs) if "." in name]
    if by not in names:
        raise PipelineError(f"--by {by}: the runs have no such parameter; choose one of {', '.join(names)}")
    others = [name for name in names if name not in (by, SEED) and not name.startswith("evaluate.")]
    left_out = []
    if n_old := int(runs["code"].isna().sum()):
        left_out.append(f"{n_old} run(s) without the tag `code`, which older versions did not write")
    known = runs.dropna(subset=["code"])
    if n_without := int(known[by].isna().sum()):
        left_out.append(f"{n_without} run(s) without a value of {by}")
    known = known.dropna(subset=[by]).sort_values("started")
    set_by_axis = SETS.get(by, [])
    same = ["code", *others, *(name for name in ENVIRONMENT.values() if name not in set_by_axis)]
    if not all(isinstance(value, int | float) for value in known[by]):
        known[by] = known[by].map(format_value)
    newest = known.drop_duplicates([*same, *set_by_axis, by, SEED], keep="last")
    if n_superseded := len(known) - len(newest):
        left_out.append(f"{n_superseded} run(s) superseded by a newer run of the same trial")
    groups = []
    for _, group in newest.groupby(same, dropna=False, sort=False):
        if (group.groupby(by)[set_by_axis].nunique() > 1).to_numpy().any():
            left_out.append(
                f"{len(group)} run(s): some have the same {by}, but not the same {' and '.join(set_by_axis)}"
            )
        else:
            groups.append(group)

    def rank(group: pd.DataFrame) -> tuple[int, bool, float]:
        is_own = all(
            format_value(group[name].iloc[0]) == format_value(number_or_text(str(params.get(name)))) for name in others
        )
        return group[by].nunique(), is_own, group["started"].max()

    groups.sort(key=rank, reverse=True)
    usable = [group for group in groups if group[by].nunique() > 1][:MAX_CURVES]
    if not usable:
        raise PipelineError(
            f"no two of {len(runs)} run(s) differ only in {by} (and the seed); `make sweep` creates some, "
            f"or choose another --by{''.join(f'; left out: {reason}' for reason in left_out)}"
        )
    curves = []
    for group in groups:
        differs = difference(group, usable[0], same)
        if any(group is other for other in usable):
            label = (own_sweep(group, newest) or differs) if differs else MAIN
            curves.append(Curve(label, differs, group.sort_values([by, SEED]).reset_index(drop=True)))
        else:
            values = ", ".join(sorted(map(format_value, group[by].unique())))
            too_few = "; a curve needs two values" if group[by].nunique() == 1 else ""
            left_out.append(f"{len(group)} run(s), {by} {values}: {differs}{too_few}")
    return curves, left_out


def own_sweep(group: pd.DataFrame, runs: pd.DataFrame) -> str | None:
    """Return the name of the sweep that consists of exactly this group's runs; None unless there is exactly one."""
    sweeps = runs["sweep"].fillna("").map(lambda names: set(sweeps_of({SWEEP_TAG: names})))
    is_ours = runs.index.isin(group.index)
    names = set.intersection(*sweeps[is_ours]) - set().union(*sweeps[~is_ours]) - {"", MAIN}
    return names.pop() if len(names) == 1 else None


def difference(group: pd.DataFrame, first: pd.DataFrame, same: list[str]) -> str:
    """Describe how a group's parameters, code or environment differ from the first group's; empty for the first."""
    ours, theirs = group.iloc[0], first.iloc[0]
    changed = [
        name for name in same if ours[name] != theirs[name] and not (pd.isna(ours[name]) and pd.isna(theirs[name]))
    ]
    values = [
        f"code {ours[name][:6]}" if name == "code" else f"{short(name)}={format_value(ours[name])}" for name in changed
    ]
    return "; ".join(dict.fromkeys(values))  # train.threads=4 and 4 threads are one difference


def summarise(curves: list[Curve], by: str) -> pd.DataFrame:
    """Return seed count, metric means and sample standard deviations for each curve and value of `by`.

    A standard deviation is missing if there is only one seed; a metric is missing if no run has it.
    """
    metrics = compared(load_metrics())
    lines = []
    for curve in curves:
        for value, runs in curve.runs.groupby(by):
            line: dict[str, Any] = {
                "curve": curve.label,
                by: value,
                "n_seeds": runs[SEED].nunique(),
            }
            for column, metric in metrics.items():
                line[column] = runs[column].mean()
                if not metric.seedless:
                    line[f"{column}_std"] = runs[column].std()
            lines.append(line)
    table = pd.DataFrame(lines)
    # Integers, for example numbers of parameters, which %g would round.
    whole = [
        column
        for column, metric in metrics.items()
        if metric.seedless and len(known := table[column].dropna()) and (known % 1 == 0).all()
    ]
    return table.astype(dict.fromkeys(whole, "Int64"))


def format_value(value: Any) -> str:
    """Format a value as params.yaml has it: 8 for 8.0; `unknown` if it is missing."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)
