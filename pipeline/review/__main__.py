"""Review a change: parameters, metrics against tolerances, stages, figures, and whether dvc.lock is up to date.

    python -m pipeline.review [BASE] [HEAD] [--json] [--file-url TEMPLATE]

BASE and HEAD are git revisions or names of DVC experiments. BASE defaults to origin/main. If BASE is a branch, the
review compares with the commit at which HEAD left it. HEAD defaults to the working tree's tracked files. Prints
Markdown or JSON. If HEAD merges a commit into BASE, as on a pull request, the report names that commit. It needs dvc
(requirements-review.txt), but neither torch, nor DVC's cache, nor the history between BASE and HEAD. It changes no
file, branch or index; it may fetch BASE.

Exit codes: 0 passed; 1 a metric is worse than metrics.yaml allows, gone, or measured on other data; 2 misuse, or BASE
or HEAD cannot be read; 3 HEAD's dvc.lock does not match HEAD's dvc.yaml and files, so that the results are not those
of the code; 70 a bug in this command.
"""

import argparse
import io
import json
import logging
import os
import sys
import tarfile
import tempfile
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from dvc.repo import Repo

from pipeline.core.errors import EXIT_BUG, PipelineError, on_one_line, run_command
from pipeline.core.git import HERE, blob, branch_point, bytes_at, commit_workspace, git, git_bytes, resolve
from pipeline.core.metrics import METRICS_PATH, Metric, is_number, judged_by, parse_metrics, pattern_of
from pipeline.core.repository import RECORD_PATH
from pipeline.experiment import EXPERIMENT
from pipeline.review.lock import frozen_stages, is_lock, out_of_date, with_descendants, without_links_to_outside
from pipeline.review.report import FAILING, Change, MetricChange, Review, markdown, without_nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="origin/main", metavar="BASE")
    parser.add_argument("head", nargs="?", metavar="HEAD")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument(
        "--file-url",
        metavar="TEMPLATE",
        help="URL of a committed file, used to show figures: https://github.com/OWNER/NAME/raw/{commit}/{path}",
    )
    arguments = parser.parse_args()
    logging.getLogger("dvc").setLevel(logging.CRITICAL)

    os.chdir(git(HERE, "rev-parse", "--show-toplevel"))
    head = resolve(arguments.head) if arguments.head else commit_workspace(HERE)[1]
    base = branch_point(arguments.base, resolve(arguments.base), head)
    review = compare(base, head, is_working_tree=arguments.head is None)
    if arguments.json:
        print(json.dumps(without_nan(asdict(review) | {"exit_code": review.exit_code}), indent=2))
    else:
        print(markdown(review, arguments.file_url))
    sys.exit(review.exit_code)


def compare(base: str, head: str, is_working_tree: bool = False) -> Review:
    """Review the commit `head` against the commit `base`, both full hashes."""
    if bytes_at(head, "dvc.yaml") is None:
        raise PipelineError(f"{head[:10]} has no dvc.yaml: there is nothing to review")
    base_lock, head_lock = bytes_at(base, "dvc.lock") or b"", bytes_at(head, "dvc.lock") or b""
    if not is_lock(head_lock):
        raise PipelineError("dvc.lock of the reviewed commit cannot be read: resolve its conflicts, or run `dvc repro`")
    notes = []
    if not is_lock(base_lock):
        notes.append("The base's dvc.lock cannot be read: everything counts as new.")
        base_lock = b""
    with Repo() as repo:
        params = changes(repo.params.diff(a_rev=base, b_rev=head), strict=not notes)
        metric_changes = changes(repo.metrics.diff(a_rev=base, b_rev=head), strict=not notes)
    old, new = (data_of(lock_outs(lock)) for lock in (base_lock, head_lock))
    other_data = {path: old.get(path) != new.get(path) for path in old | new}
    metrics = judge(metric_changes, parse_metrics(bytes_at(head, METRICS_PATH) or b""), other_data)
    if bytes_at(base, "dvc.yaml") is None:
        notes.append("The base has no pipeline: everything is new.")
    if bytes_at(head, METRICS_PATH) is None:
        notes.append(f"There is no `{METRICS_PATH}`: no metric is judged.")
    if bytes_at(base, METRICS_PATH) not in (None, bytes_at(head, METRICS_PATH)):
        notes.append(f"`{METRICS_PATH}` itself changed; the verdicts use the new one.")
    untracked = git(HERE, "ls-files", "--others", "--exclude-standard").splitlines() if is_working_tree else []
    if untracked:
        notes.append(f"Untracked files are not reviewed: {', '.join(f'`{name}`' for name in untracked[:5])}.")

    with tempfile.TemporaryDirectory(prefix="review-") as folder:
        files = Path(folder).resolve()
        with tarfile.open(fileobj=io.BytesIO(git_bytes(HERE, "archive", head))) as archive:
            archive.extractall(files, filter=without_links_to_outside)  # noqa: S202 (it applies tarfile's data filter)
        lock, frozen = out_of_date(files), frozen_stages(files)
        # With the base's dvc.lock DVC reports the stages that this change made stale.
        (files / "dvc.lock").write_bytes(base_lock or b"schema: '2.0'\nstages: {}\n")
        stages = with_descendants(files, out_of_date(files, with_outs=False))
    if others := reports_of_no_stage(base, head, {**lock_outs(base_lock), **lock_outs(head_lock)}):
        listed = ", ".join(f"`{path}`" for path in others[:5]) + (f" and {len(others) - 5} more" * (len(others) > 5))
        notes.append(f"Changed under reports/, but no stage writes them: {listed}.")
    if frozen:
        notes.append(f"Frozen stages, which `dvc repro` skips until `dvc unfreeze`: {', '.join(frozen)}.")
    declared = declared_figures(base) | declared_figures(head)
    figures = sorted(path for path in declared if blob(base, path) != blob(head, path))
    # GitHub checks out a pull request's merge into the base. The working tree's commit is also a merge: of the index.
    parents = [] if is_working_tree else git(HERE, "rev-parse", f"{head}^@").split()
    merged = parents[1] if len(parents) == 2 and parents[0] == base else head
    return Review(base, head, merged, params, metrics, stages, lock, figures, notes, is_working_tree)


def changes(diff: dict[str, Any], strict: bool = True) -> list[Change]:
    """Turn DVC's {'diff': {file: {name: {'old', 'new'}}}} into a list sorted by name, without equal values.

    A value that moved from one file to another, for example because a file was renamed, is one change.

    Raises:
        PipelineError: `strict` is set and a side cannot be read. A file that one side lacks is not an error.
    """
    for error in errors_in(diff.get("errors", {})) if strict else []:
        if not isinstance(error, FileNotFoundError):
            raise PipelineError(f"DVC cannot read one side: {type(error).__name__}: {on_one_line(error)}")
    found = [
        Change(name, values.get("old"), values.get("new"))
        for names in diff.get("diff", {}).values()
        for name, values in names.items()
    ]
    lost = {change.name: change.old for change in found if change.new is None}
    got = {change.name: change.new for change in found if change.old is None}
    moved = [Change(name, lost[name], got[name]) for name in lost.keys() & got.keys()]
    kept = [change for change in found if change.name not in lost.keys() & got.keys()]
    return sorted((change for change in kept + moved if change.old != change.new), key=lambda change: change.name)


def errors_in(values: Any) -> list[Exception]:
    """Collect all exceptions from the nested dictionaries in which DVC returns them."""
    if isinstance(values, dict):
        return [error for value in values.values() for error in errors_in(value)]
    return [values] if isinstance(values, Exception) else []


def judge(changed: list[Change], metrics: dict[str, Metric], other_data: dict[str, bool]) -> list[MetricChange]:
    """Judge each metric by the first pattern in metrics.yaml that matches its name.

    Failing metrics come first. Both parts start with the metric to report and then follow the order of the patterns.
    `other_data` has the data's paths, and whether their content differs between the two sides.
    """

    def judged(change: Change) -> MetricChange:
        metric = judged_by(change.name, metrics)
        verdict, allowed = "not judged", None
        if metric is not None:
            verdict, allowed = "gone", metric.allowed
            if not is_number(change.old):
                verdict = "new"
            elif other_data.get(EXPERIMENT.measured_on(change.name, other_data)):
                verdict = "not comparable"
            elif is_number(change.new):
                verdict = metric.verdict(change.old, change.new)
        return MetricChange(change.name, change.old, change.new, verdict, allowed)

    patterns = [*sorted(metrics, key=lambda name: metrics[name].role != "report"), None]

    def order(change: MetricChange) -> tuple[bool, int, str]:
        return change.verdict not in FAILING, patterns.index(pattern_of(change.name, metrics)), change.name

    return sorted(map(judged, changed), key=order)


def lock_outs(lock: bytes) -> dict[str, str | None]:
    """Return {path: hash} of all outputs in a dvc.lock."""
    stages = (yaml.safe_load(lock) or {}).get("stages", {}).values()
    return {out["path"]: out.get("md5") for stage in stages for out in stage.get("outs", [])}


def data_of(outs: dict[str, str | None]) -> dict[str, str | None]:
    """Return those outputs that are the experiment's data."""
    return {path: md5 for path, md5 in outs.items() if path.startswith(EXPERIMENT.data_folder)}


def reports_of_no_stage(base: str, head: str, outs: Collection[str]) -> list[str]:
    """Return the files under reports/ that differ between two commits and are not outputs."""
    changed = git(HERE, "diff", "--name-only", "--no-renames", base, head, "--", "reports").splitlines()
    return sorted({*changed} - {*outs, str(RECORD_PATH)})


def declared_figures(commit: str) -> set[str]:
    """Return the PNG files among the plots of a commit's stages."""
    stages = (yaml.safe_load(bytes_at(commit, "dvc.yaml") or b"") or {}).get("stages", {})
    plots = [plot for stage in stages.values() for plot in stage.get("plots", [])]
    paths = {plot if isinstance(plot, str) else next(iter(plot)) for plot in plots}
    return {path for path in paths if path.endswith(".png")}


if __name__ == "__main__":
    # Python exits with 1 after a bug; here 1 means that a metric is worse.
    run_command(main, exit_code_of_a_bug=EXIT_BUG)
