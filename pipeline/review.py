"""Review what a change does: parameters, metrics against tolerances, stages, figures, and dvc.lock's truth.

    python -m pipeline.review [BASE] [HEAD] [--json] [--file-url TEMPLATE]

BASE and HEAD are git revisions or names of DVC experiments. BASE is origin/main unless given; where it
is a branch, the commit at which HEAD left it counts. HEAD is the working tree's tracked files unless
given. Prints Markdown, or JSON; where HEAD merges a commit into BASE, as on a pull request, it names that
commit. It needs dvc, not torch (requirements-review.txt), and neither DVC's cache nor the history between
the two. It changes no file, branch or index; it may fetch the base.

Exit codes: 0 fine; 1 a metric is worse than tolerances.yaml allows, gone, or of other data;
2 misuse, or a side that cannot be read; 3 HEAD's dvc.lock does not belong to HEAD's dvc.yaml and files, so
that its results are not those of its code; 70 a bug of this command.
"""

import argparse
import io
import json
import logging
import math
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from dvc.dependency import Dependency, ParamsDependency
from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import PipelineStage, Stage

from pipeline.clones import commit_workspace
from pipeline.errors import BUG, PipelineError, run_command
from pipeline.git import git, git_bytes
from pipeline.params import load_yaml
from pipeline.tolerances import TOLERANCES_PATH, Tolerance, is_number, parse_tolerances, pattern_of, tolerance_of

HERE = Path()
WORSE, LOCK_OUT_OF_DATE = 1, 3
FAILING = ("worse", "gone", "not comparable")
# A group of metrics that is folded in the report.
DIGITS = "test.digit_mse."
METRICS_IN_VERDICT = 3


@dataclass(frozen=True)
class Change:
    """A parameter or metric whose value differs; None where one side does not have it."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class MetricChange(Change):
    """A metric's change, its verdict and the change to the worse that is allowed, as `3 %`; None where none is judged.

    The verdict is one of FAILING, or `better`, `within tolerance`, `new` or `not judged`.
    """

    verdict: str
    allowed: str | None


@dataclass(frozen=True)
class Review:
    """What changed between two commits. `stages` and `lock` map stages to the reasons.

    `merged` is the commit that `head` merges into `base`, as on a pull request; else `head` itself.
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

    @property
    def exit_code(self) -> int:
        if self.lock:
            return LOCK_OUT_OF_DATE
        return WORSE if any(metric.verdict in FAILING for metric in self.metrics) else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="origin/main", metavar="BASE")
    parser.add_argument("head", nargs="?", metavar="HEAD")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument(
        "--file-url",
        metavar="TEMPLATE",
        help="address of a committed file, to show figures by: https://github.com/OWNER/NAME/raw/{commit}/{path}",
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
    if show(head, "dvc.yaml") is None:
        raise PipelineError(f"{head[:10]} has no dvc.yaml: there is nothing to review")
    base_lock, head_lock = show(base, "dvc.lock") or b"", show(head, "dvc.lock") or b""
    if not is_lock(head_lock):
        raise PipelineError("dvc.lock of the reviewed commit cannot be read: resolve its conflicts, or run `dvc repro`")
    notes = []
    if not is_lock(base_lock):
        notes.append("The base's dvc.lock cannot be read: everything counts as new.")
        base_lock = b""
    with Repo() as repo:
        params = changes(repo.params.diff(a_rev=base, b_rev=head), strict=not notes)
        metric_changes = changes(repo.metrics.diff(a_rev=base, b_rev=head), strict=not notes)
    splits, base_splits = split_hashes(head_lock), split_hashes(base_lock)
    is_same_data = {split: splits[split] == base_splits[split] for split in splits}
    metrics = judge(metric_changes, parse_tolerances(show(head, TOLERANCES_PATH) or b""), is_same_data)
    if show(base, "dvc.yaml") is None:
        notes.append("The base has no pipeline: everything is new.")
    if show(base, TOLERANCES_PATH) not in (None, show(head, TOLERANCES_PATH)):
        notes.append(f"`{TOLERANCES_PATH}` itself changed; the verdicts use the new one.")
    untracked = git(HERE, "ls-files", "--others", "--exclude-standard").splitlines() if is_working_tree else []
    if untracked:
        notes.append(f"Untracked files are not reviewed: {', '.join(f'`{name}`' for name in untracked[:5])}.")

    with tempfile.TemporaryDirectory(prefix="review-") as folder:
        files = Path(folder).resolve()
        with tarfile.open(fileobj=io.BytesIO(git_bytes(HERE, "archive", head))) as archive:
            archive.extractall(files, filter=without_links_to_outside)  # noqa: S202 (it applies tarfile's data filter)
        lock, frozen = out_of_date(files), frozen_stages(files)
        # With the base's dvc.lock DVC tells what this change made stale.
        (files / "dvc.lock").write_bytes(base_lock or b"schema: '2.0'\nstages: {}\n")
        stages = with_descendants(files, out_of_date(files, with_outs=False))
    if frozen:
        notes.append(f"Frozen, so that `dvc repro` skips them until `dvc unfreeze`: {', '.join(frozen)}.")
    declared = declared_figures(base) | declared_figures(head)
    figures = sorted(path for path in declared if blob(base, path) != blob(head, path))
    # GitHub checks out a pull request's merge into the base. (The working tree's commit is a merge too, of the index.)
    parents = [] if is_working_tree else git(HERE, "rev-parse", f"{head}^@").split()
    merged = parents[1] if len(parents) == 2 and parents[0] == base else head
    return Review(base, head, merged, params, metrics, stages, lock, figures, notes)


def without_links_to_outside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    try:
        return tarfile.data_filter(member, folder)
    except tarfile.FilterError:
        return None


def changes(diff: dict[str, Any], strict: bool = True) -> list[Change]:
    """DVC's {'diff': {file: {name: {'old', 'new'}}}} as a list sorted by name; equal values are left out.

    A value that one file lost and another one got, as when a file was renamed, is one change.

    Raises:
        PipelineError: strict, and a side cannot be read; a file that one side does not have is no error.
    """
    for error in errors_in(diff.get("errors", {})) if strict else []:
        if not isinstance(error, FileNotFoundError):
            raise PipelineError(f"DVC cannot read one side: {type(error).__name__}: {' '.join(str(error).split())}")
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
    """All exceptions in the nested dictionaries in which DVC returns them."""
    if isinstance(values, dict):
        return [error for value in values.values() for error in errors_in(value)]
    return [values] if isinstance(values, Exception) else []


def judge(metrics: list[Change], tolerances: dict[str, Tolerance], is_same_data: dict[str, bool]) -> list[MetricChange]:
    """Each metric's verdict by the first pattern that fits its name: the failing ones first, each part in that order.

    `is_same_data` holds whether the split, `valid` or `test`, is the same on both sides.
    """

    def judged(metric: Change) -> MetricChange:
        tolerance = tolerance_of(metric.name, tolerances)
        verdict, allowed = "not judged", None
        if tolerance is not None:
            verdict, allowed = "gone", str(tolerance)
            if not is_number(metric.old):
                verdict = "new"
            elif not is_same_data["valid" if metric.name.startswith("valid.") else "test"]:
                verdict = "not comparable"
            elif is_number(metric.new):
                verdict = tolerance.verdict(metric.old, metric.new)
        return MetricChange(metric.name, metric.old, metric.new, verdict, allowed)

    patterns = [*tolerances, None]

    def order(metric: MetricChange) -> tuple[bool, int, str]:
        return metric.verdict not in FAILING, patterns.index(pattern_of(metric.name, tolerances)), metric.name

    return sorted(map(judged, metrics), key=order)


def split_hashes(lock: bytes) -> dict[str, str | None]:
    """{split: hash} of the prepared splits `valid` and `test` in a dvc.lock; None where no stage writes them."""
    stages = (yaml.safe_load(lock) or {}).get("stages", {}).values()
    hashes = {out["path"]: out.get("md5") for stage in stages for out in stage.get("outs", [])}
    return {split: hashes.get(f"data/prepared/{split}.safetensors") for split in ("valid", "test")}


def out_of_date(files: Path, with_outs: bool = True) -> dict[str, list[str]]:
    """The stages of a checkout whose entry in dvc.lock differs from dvc.yaml or from the files, with the reasons.

    Without `with_outs` only what the stages read counts, not what they wrote. Frozen stages count like others.
    Data and weights are not in git, so their absence is not a reason; dvc.lock must agree with itself about them.
    (`dvc status` does not report what dvc.lock lists and dvc.yaml does not, nor what frozen stages read;
    `dvc repro --dry --allow-missing` stops at the first stale stage whose data is missing.)
    """
    with checkout(files) as repo:
        stages = list(repo.index.stages)
        pipelines = list(files.rglob("dvc.yaml"))
        locks = {file: locked_stages(file.with_name("dvc.lock")) for file in pipelines}
        made = {out.fs_path: out for stage in stages for out in stage.outs}
        reasons = {}
        for stage in stages:
            if not isinstance(stage, PipelineStage):  # a .dvc file, which is its own lock
                reasons[label_of(stage)] = differences(stage, stage.deps if stage.cmd else [], stage.outs, made)
                continue
            locked = locks.get(Path(stage.path), {}).pop(stage.name, None)
            if locked is None:
                reasons[label_of(stage)] = ["not in dvc.lock"]
                continue
            outs = stage.outs if with_outs else []
            reasons[label_of(stage)] = differences(stage, stage.deps, outs, made) + undeclared(stage, locked, with_outs)
        for file, left in locks.items():
            reasons |= {label(file, name, files): ["in dvc.lock, not in dvc.yaml: delete it there"] for name in left}
        written = [Path(out.fs_path) for stage in stages if stage.cmd for out in stage.outs]
        for file in pipelines:
            for metric in (load_yaml(file.read_text()) or {}).get("metrics", []):
                path = Path(os.path.normpath(file.parent / metric))
                if not any(path.is_relative_to(out) for out in written):
                    name = str(file.relative_to(files))
                    reasons.setdefault(name, []).append(f"no stage writes the metrics `{path.relative_to(files)}`")
    return {name: why for name, why in reasons.items() if why}


def differences(stage: Stage, deps: list[Dependency], outs: list[Output], made: dict[str, Output]) -> list[str]:
    """In what the files differ from what is recorded of a stage. `made` are all outs by their absolute path."""
    reasons = ["changed command"] if stage.changed_stage() else []
    if stage.always_changed or stage.is_callback:
        reasons.append("always changed")
    for item in [*deps, *outs]:
        path, source = os.path.relpath(item.fs_path, stage.repo.root_dir), made.get(item.fs_path)
        if isinstance(item, ParamsDependency):
            reasons += changed_values(item)
        elif not item.hash_info:
            reasons.append(f"`{path}` is not in dvc.lock")
        elif source is not None and source.hash_info and source.hash_info.value != item.hash_info.value:
            reasons.append(f"`{path}` is another version than the one that dvc.lock has as an out")
        elif source is not None and source is item and item.metric and item.use_cache and not item.exists:
            reasons.append(f"`{path}` is a metric that git does not have; give it `cache: false`")
        elif all(out.exists for out in made.values() if out.use_cache and is_one_in_the_other(out, item)):
            # Not item.status(): of a cached file that git has too, it reports only that the cache lacks it.
            reasons += [f"`{path}` {state}" for state in item.workspace_status().values()]
    return reasons


def is_one_in_the_other(out: Output, item: Output) -> bool:
    """Whether an out is the item, a file in its folder, or the folder in which it lies."""
    paths = Path(out.fs_path), Path(item.fs_path)
    return paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0])


def undeclared(stage: PipelineStage, locked: dict[str, Any], with_outs: bool) -> list[str]:
    """What dvc.lock lists for a stage and dvc.yaml no longer declares. `dvc repro` leaves it there."""
    declared = {item.def_path: item for item in stage.deps}
    names = [dep["path"] for dep in locked.get("deps", []) if dep["path"] not in declared]
    for file, values in locked.get("params", {}).items():
        # A file without names is declared whole.
        kept = (declared[file].params or values) if file in declared else []
        names += [name for name in values if name not in kept]
    if with_outs:
        outs = {out.def_path for out in stage.outs}
        names += [out["path"] for out in locked.get("outs", []) if out["path"] not in outs]
    return [f"`{name}` is in dvc.lock, not in dvc.yaml" for name in names]


def changed_values(params: ParamsDependency) -> list[str]:
    """For each value that differs between dvc.lock and the file: `section.name` old → new."""
    old, new = params.hash_info.value or {}, params.read_params()
    reasons = []
    for name in params.params or {**new, **old}:
        if name not in old or name not in new:
            reasons.append(f"`{name}` is not in {params.def_path if name in old else 'dvc.lock'}")
        elif isinstance(old[name], dict) and isinstance(new[name], dict):
            keys = [key for key in new[name] | old[name] if old[name].get(key, ...) != new[name].get(key, ...)]
            reasons += [f"`{name}.{key}` {text(old[name].get(key))} → {text(new[name].get(key))}" for key in keys]
        elif old[name] != new[name]:
            reasons.append(f"`{name}` {text(old[name])} → {text(new[name])}")
    return reasons


@contextmanager
def checkout(files: Path) -> Iterator[Repo]:
    """DVC's view of a checkout without cache.

    Raises:
        PipelineError: DVC cannot read the pipeline.
    """
    (files / ".dvc").mkdir(exist_ok=True)
    # Its own cache folder for the site, or every review would leave one more in the user's.
    (files / ".dvc/config.local").write_text(f"[core]\n    no_scm = true\n    site_cache_dir = {files / '.dvc/site'}\n")
    try:
        with Repo(files) as repo:
            yield repo
    except DvcException as error:
        reason = " ".join(str(error).split()).replace(os.path.relpath(files) + "/", "")
        raise PipelineError(f"DVC cannot read the pipeline of the reviewed commit: {reason}") from None


def is_lock(content: bytes) -> bool:
    """Whether this can be read as a dvc.lock; an empty one, for none, can."""
    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError:
        return False
    return values is None or (isinstance(values, dict) and isinstance(values.get("stages", {}), dict))


def locked_stages(lock: Path) -> dict[str, Any]:
    return (load_yaml(lock.read_text()) or {}).get("stages", {}) if lock.is_file() else {}


def with_descendants(files: Path, stale: dict[str, list[str]]) -> dict[str, list[str]]:
    """The stale stages and those after them, in the pipeline's order."""
    with checkout(files) as repo:
        graph = repo.index.graph
        before = {label_of(stage): {label_of(up) for up in graph.successors(stage)} for stage in graph}
    result: dict[str, list[str]] = {}
    for stage in TopologicalSorter(before).static_order():
        after = sorted(before[stage] & set(result))
        reasons = stale.get(stage, []) + ([f"after {', '.join(after)}"] if after else [])
        if reasons:
            result[stage] = reasons
    return result


def frozen_stages(files: Path) -> list[str]:
    with checkout(files) as repo:
        return [f"`{label_of(stage)}`" for stage in repo.index.stages if stage.frozen and stage.cmd]


def label(file: Path, name: str, root: Path) -> str:
    """`train` for a stage of the root's dvc.yaml, `sub/dvc.yaml:train` for others."""
    return name if file.parent == root else f"{file.relative_to(root)}:{name}"


def label_of(stage: Stage) -> str:
    """A stage's label; of a .dvc file its path."""
    file, root = Path(stage.path), Path(stage.repo.root_dir)
    return label(file, stage.name, root) if isinstance(stage, PipelineStage) else str(file.relative_to(root))


def declared_figures(commit: str) -> set[str]:
    """The PNG files among the plots of a commit's stages."""
    stages = (yaml.safe_load(show(commit, "dvc.yaml") or b"") or {}).get("stages", {})
    plots = [plot for stage in stages.values() for plot in stage.get("plots", [])]
    paths = {plot if isinstance(plot, str) else next(iter(plot)) for plot in plots}
    return {path for path in paths if path.endswith(".png")}


def without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(review: Review, file_url: str | None) -> str:
    """The review for a job summary or a comment."""
    if review.exit_code == LOCK_OUT_OF_DATE:
        verdict = (
            "❌ The results are not those of this code: run `dvc repro` (`--force` if it has nothing to do), "
            "commit dvc.lock and reports/."
        )
    elif failing := [failure(metric) for metric in review.metrics if metric.verdict in FAILING]:
        more = len(failing) - METRICS_IN_VERDICT
        verdict = "❌ " + "; ".join(failing[:METRICS_IN_VERDICT]) + (f"; and {more} more" if more > 0 else "") + "."
    else:
        verdict = "✅ Nothing speaks against it."
    relation = "against" if review.merged == review.head else "merged into"
    parts = [f"## Review of `{review.merged[:10]}` {relation} `{review.base[:10]}`", verdict, *review.notes]

    parts.append("### Parameters")
    if review.params:
        parts.append(table(["parameter", "old", "new"], [[c.name, text(c.old), text(c.new)] for c in review.params]))
    else:
        parts.append("No parameter changed.")

    parts.append("### Metrics")
    if review.metrics:
        digits = [metric for metric in review.metrics if metric.name.startswith(DIGITS)]
        if others := [metric for metric in review.metrics if metric not in digits]:
            parts.append(table_of(others))
        if digits:
            counts = Counter(metric.verdict for metric in digits)
            summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
            parts.append(f"<details><summary>Single digits: {summary}</summary>")
            parts += [table_of(digits), "</details>"]
    else:
        parts.append("No metric changed.")

    parts.append("### Stages that this change reruns")
    if review.stages:
        parts.append(bullets(review.stages))
    else:
        parts.append("None.")

    parts.append("### dvc.lock")
    if review.lock:
        parts.append("It does not belong to the files that are committed with it:")
        parts.append(bullets(review.lock))
    else:
        parts.append("It belongs to the code, parameters and metrics that are committed with it.")

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
        parts.append(table(["figure", "before", "after"], shown))
    return "\n\n".join(parts)


def failure(metric: MetricChange) -> str:
    """Why a metric fails the gate: `test.mse +18.4 %, 3 % allowed`."""
    if metric.verdict != "worse":
        return f"{metric.name} is {'gone' if metric.verdict == 'gone' else 'of other data'}"
    absolute, percent = difference(metric.old, metric.new)
    moved = f"{percent} %" if percent and str(metric.allowed).endswith("%") else absolute
    return f"{metric.name} {moved}, {metric.allowed} allowed"


def table_of(metrics: list[MetricChange]) -> str:
    rows = [[m.name, text(m.old), text(m.new), *difference(m.old, m.new), m.verdict] for m in metrics]
    return table(["metric", "old", "new", "difference", "%", "verdict"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def bullets(reasons: dict[str, list[str]]) -> str:
    return "\n".join(f"- **{stage}**: {'; '.join(why)}" for stage, why in reasons.items())


def text(value: Any) -> str:
    """A value in a table's cell, numbers with six significant digits."""
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


def resolve(name: str) -> str:
    """The commit that a revision or a DVC experiment's name means, fetched if a remote has it.

    Raises:
        PipelineError: there is no such commit; the message has the command that fetches it.
    """
    if (commit := find_commit(name)) is not None:
        return commit
    remotes = git(HERE, "remote").split()
    remote, _, branch = name.partition("/")
    if remote not in {*remotes, "origin"}:
        remote, branch = "origin", name
    # In a full clone a depth would cut the history off.
    depth = ["--depth=1"] if git(HERE, "rev-parse", "--is-shallow-repository") == "true" else []
    if re.search(r"[~^]", name):
        fetch = ["fetch", "--deepen=10", remote]
    elif re.fullmatch("[0-9a-f]{40}", name):
        fetch = ["fetch", *depth, remote, name]
    else:
        fetch = ["fetch", *depth, remote, f"+refs/heads/{branch}:refs/remotes/{remote}/{branch}"]
    if remote in remotes:
        subprocess.run(["git", *fetch, "--quiet"], capture_output=True)
        if (commit := find_commit(f"{remote}/{branch}") or find_commit(name)) is not None:
            return commit
    raise PipelineError(f"unknown revision {name!r}; if it is on a remote, fetch it: git {' '.join(fetch)}")


def branch_point(name: str, base: str, head: str) -> str:
    """Where `head` left the branch `name`, so that what the branch did since then is not held against it.

    The base itself where it is no branch (two commits, two experiments), or where the history is too
    short to tell, as in a shallow clone.
    """
    ref = subprocess.run(["git", "rev-parse", "--symbolic-full-name", name], capture_output=True, text=True).stdout
    if not ref.startswith(("refs/heads/", "refs/remotes/")):
        return base
    found = subprocess.run(["git", "merge-base", base, head], capture_output=True, text=True)
    return found.stdout.strip() or base


def find_commit(name: str) -> str | None:
    """The commit that a name means here, None if nothing here has that name.

    Raises:
        PipelineError: several experiments have it.
    """
    revision = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"],
        capture_output=True,
        text=True,
    )
    if revision.returncode == 0:
        return revision.stdout.strip()
    # refs/exps/<two digits of the baseline>/<its other 38>/<name>
    listed = git(HERE, "for-each-ref", "--format=%(refname) %(objectname)", f"refs/exps/*/*/{name}").splitlines()
    experiments = [(*ref.split("/")[2:4], commit) for ref, commit in map(str.split, listed)]
    if len(experiments) > 1:
        found = ", ".join(f"{commit[:10]} (of {first}{rest[:8]})" for first, rest, commit in experiments)
        raise PipelineError(f"{len(experiments)} experiments are called {name!r}, give one's commit: {found}")
    return experiments[0][2] if experiments else None


def show(commit: str, path: str) -> bytes | None:
    """A file's content in a commit, None where it is not in it."""
    return None if blob(commit, path) is None else git_bytes(HERE, "show", f"{commit}:{path}")


def blob(commit: str, path: str) -> str | None:
    """The hash of a file's content in a commit, None where it is not in it."""
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{commit}:{path}"], capture_output=True, text=True
    )
    return found.stdout.strip() if found.returncode == 0 else None


if __name__ == "__main__":
    # Python's own exit code for a bug is 1, which says here that a metric is worse.
    run_command(main, exit_code_of_a_bug=BUG)
