"""Read the runs of the store, or of runs.csv; split them into curves of runs that compare; summarise the curves."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.core.errors import PipelineError
from pipeline.core.metrics import Metric, in_mlflow, load_metrics, with_role
from pipeline.core.params_file import short
from pipeline.tracking.store import open_store, search_all
from pipeline.tracking.tags import SWEEP_TAG, sweeps_of

if TYPE_CHECKING:
    from mlflow.entities import Run

FOLDER = Path("reports/compare")
RUNS_PATH = FOLDER / "runs.csv"
SEED = "train.seed"
# What decides a result besides the parameters, by the tag that holds it.
ENVIRONMENT = {f"env.{name}": name for name in ("device", "hardware", "threads", "precision", "torch")}
TAGS = {SWEEP_TAG: "sweep", "code": "code", "evaluation.code": "evaluation_code"} | ENVIRONMENT
# What of the environment a parameter sets.
SETS = {
    "train.device": ["device", "hardware", "precision"],
    "train.precision": ["precision"],
    "train.threads": ["threads"],
}
MAIN = "main"
MAX_CURVES = 5


@dataclass(frozen=True)
class Curve:
    """Runs that compare: a short label, in what they differ from the first curve's (empty for that one), the runs."""

    label: str
    difference: str
    runs: pd.DataFrame


def find_runs(sweep: str | None) -> pd.DataFrame:
    """Read every finished run of the store that has the metric to report: parameters, metrics, sweeps, code and so on.

    Raises:
        PipelineError: there is none.
    """
    client, experiment_id = open_store()
    metrics = load_metrics()
    reported = in_mlflow(with_role("report", metrics)[0])
    found = search_all(client, experiment_id, "attributes.status = 'FINISHED'")
    found = [run for run in found if reported in run.data.metrics]
    if sweep is not None:
        found = [run for run in found if sweep in sweeps_of(run.data.tags)]
    if not found:
        where = "" if sweep is None else f" and the tag sweep = {sweep!r}"
        raise PipelineError(
            f"the store has no finished run with the metric {reported}{where}; `make sweep` makes some, "
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
    """{column: metric} of those that have one."""
    return {metric.column: metric for metric in metrics.values() if metric.column}


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
    runs = runs.reindex(columns=list(dict.fromkeys([*runs, "evaluation_code"])))  # older versions did not write it
    numbers = {"started", *compared(load_metrics())}
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
    # Numbers of parameters, say, which %g would round.
    whole = [
        column
        for column, metric in metrics.items()
        if metric.seedless and len(known := table[column].dropna()) and (known % 1 == 0).all()
    ]
    return table.astype(dict.fromkeys(whole, "Int64"))


def show(value: Any) -> str:
    """8 for 8.0, as params.yaml has it."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return "unknown"
    return f"{value:g}" if isinstance(value, float) else str(value)
