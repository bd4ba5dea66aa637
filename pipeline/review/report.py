"""The records of a review, and its Markdown report."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.git import blob
from pipeline.core.metrics import is_number
from pipeline.experiment import EXPERIMENT

# Exit codes.
WORSE, LOCK_OUT_OF_DATE = 1, 3
FAILING = ("worse", "gone", "not comparable")
# The verdict names at most this many failing metrics.
METRICS_IN_VERDICT = 3


@dataclass(frozen=True)
class Change:
    """A parameter or metric whose value differs; None where one side does not have it."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class MetricChange(Change):
    """A metric's change with its verdict and the allowed deterioration (`3 %`), which is None if it is not judged.

    The verdict is one of FAILING, or `better`, `within tolerance`, `new` or `not judged`.
    """

    verdict: str
    allowed: str | None


@dataclass(frozen=True)
class Review:
    """The changes between two commits.

    `stages` (those that the change reruns) and `lock` (those that are out of date) map stages to reasons.
    `merged` is the commit that `head` merges into `base`, as on a pull request; otherwise `head` itself. If the working
    tree is reviewed, `head` is a commit of its files that is on no branch.
    """

    base: str
    head: str
    merged: str
    params: list[Change]
    metrics: list[MetricChange]
    stages: dict[str, list[str]]
    lock: dict[str, list[str]]
    figures: list[str]
    notes: list[str]
    is_working_tree: bool = False

    @property
    def exit_code(self) -> int:
        if self.lock:
            return LOCK_OUT_OF_DATE
        return WORSE if any(metric.verdict in FAILING for metric in self.metrics) else 0


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity by None, because JSON has neither."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(review: Review, file_url: str | None) -> str:
    """Format the review as Markdown for a job summary or a comment."""
    if review.exit_code == LOCK_OUT_OF_DATE:
        verdict = (
            "❌ The results were not produced by this code: run `dvc repro` (`--force` if it has nothing to do), "
            "commit dvc.lock and reports/."
        )
    elif failing := [failure(metric) for metric in review.metrics if metric.verdict in FAILING]:
        more = len(failing) - METRICS_IN_VERDICT
        verdict = "❌ " + "; ".join(failing[:METRICS_IN_VERDICT]) + (f"; and {more} more" if more > 0 else "") + "."
    else:
        verdict = "✅ The change passes."
    relation = "against" if review.merged == review.head else "merged into"
    reviewed = "the working tree" if review.is_working_tree else f"`{review.merged[:10]}`"
    parts = [f"## Review of {reviewed} {relation} `{review.base[:10]}`", verdict, *review.notes]

    parts.append("### Parameters")
    if review.params:
        changes = [[change.name, format_value(change.old), format_value(change.new)] for change in review.params]
        parts.append(markdown_table(["parameter", "old", "new"], changes))
    else:
        parts.append("No parameter changed.")

    parts.append("### Metrics")
    if review.metrics:
        prefix, title = EXPERIMENT.folded or ("", "")
        folded = [metric for metric in review.metrics if prefix and metric.name.startswith(prefix)]
        if others := [metric for metric in review.metrics if metric not in folded]:
            parts.append(table_of(others))
        if folded:
            counts = Counter(metric.verdict for metric in folded)
            summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
            parts.append(f"<details><summary>{title}: {summary}</summary>")
            parts += [table_of(folded), "</details>"]
    else:
        parts.append("No metric changed.")

    parts.append("### Stages that this change reruns")
    if review.stages:
        parts.append(bullets(review.stages))
    else:
        parts.append("None.")

    parts.append("### dvc.lock")
    if review.lock:
        parts.append("It does not match the files next to it:")
        parts.append(bullets(review.lock))
    else:
        parts.append("It matches the code, parameters and metrics next to it.")

    parts.append("### Figures")
    if not review.figures:
        parts.append("No figure changed.")
    elif file_url is None:
        parts.append("Changed: " + ", ".join(f"`{path}`" for path in review.figures))
        parts.append(f"Side by side: `dvc plots diff {review.base[:10]} {review.merged[:10]}`")
    else:
        shown = [
            [Path(path).stem, picture(review.base, path, file_url), picture(review.merged, path, file_url)]
            for path in review.figures
        ]
        parts.append(markdown_table(["figure", "before", "after"], shown))
    return "\n\n".join(parts)


def failure(metric: MetricChange) -> str:
    """Return why a metric fails the gate: `test.mse +18.4 %, 3 % allowed`."""
    if metric.verdict != "worse":
        return f"{metric.name} {'is gone' if metric.verdict == 'gone' else 'was measured on other data'}"
    absolute, percent = difference(metric.old, metric.new)
    moved = f"{percent} %" if percent and str(metric.allowed).endswith("%") else absolute
    return f"{metric.name} {moved}, {metric.allowed} allowed"


def table_of(metrics: list[MetricChange]) -> str:
    rows = [[m.name, format_value(m.old), format_value(m.new), *difference(m.old, m.new), m.verdict] for m in metrics]
    return markdown_table(["metric", "old", "new", "difference", "%", "verdict"], rows)


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def bullets(reasons: dict[str, list[str]]) -> str:
    return "\n".join(f"- **{stage}**: {'; '.join(why)}" for stage, why in reasons.items())


def format_value(value: Any) -> str:
    """Format a value for a table's cell, floats with six significant figures."""
    shown = "—" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return shown.replace("|", "\\|").replace("\n", " ")


def difference(old: Any, new: Any) -> tuple[str, str]:
    if not (is_number(old) and is_number(new)):
        return "", ""
    absolute = f"{new - old:+d}" if isinstance(new - old, int) else f"{new - old:+.3g}"
    return absolute, f"{100 * (new - old) / abs(old):+.1f}" if old else ""


def picture(commit: str, path: str, file_url: str) -> str:
    if blob(commit, path) is None:
        return "—"
    return f"![{Path(path).stem}]({file_url.format(commit=commit, path=path)})"
