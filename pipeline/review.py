"""Review what a change does: parameters, metrics against tolerances, stages, figures, and dvc.lock's truth.

    python -m pipeline.review [BASE] [HEAD] [--json] [--file-url TEMPLATE]

BASE and HEAD are git revisions or names of DVC experiments. BASE is origin/main unless given; where it
is a branch, the commit at which HEAD left it counts. HEAD is the working tree's tracked files unless
given. Prints Markdown, or JSON. It needs dvc, not torch (requirements-review.txt), and neither DVC's
cache nor the history between the two. It changes no file, branch or index; it may fetch the base.

Exit codes: 0 fine; 1 a metric is worse than tolerances.yaml allows, gone, or of another data set;
2 misuse, or a side that cannot be read; 3 HEAD's dvc.lock does not belong to HEAD's files, so that its
results are not those of its code; 70 a bug of this command.
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
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipeline import dvcfiles
from pipeline.clones import commit_workspace
from pipeline.errors import BUG, PipelineError, run_command
from pipeline.git import git, git_bytes
from pipeline.params import load_yaml
from pipeline.tolerances import TOLERANCES_PATH, Tolerance, is_number, parse_tolerances, tolerance_of

HERE = Path()
WORSE, LOCK_OUT_OF_DATE = 1, 3
# What a reviewer should see first stands first.
VERDICTS = ("worse", "gone", "not comparable", "better", "within tolerance", "new", "not judged")
FAILING = VERDICTS[:3]


@dataclass(frozen=True)
class Change:
    """A parameter or metric whose value differs; None where one side does not have it."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class MetricChange(Change):
    """A metric's change and its verdict, one of VERDICTS."""

    verdict: str


@dataclass(frozen=True)
class Review:
    """What changed between two commits. `stages` and `lock` map stages to the reasons."""

    base: str
    head: str
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
    base_lock = show(base, "dvc.lock") or b""
    notes = []
    if not is_lock(base_lock):
        notes.append("The base's dvc.lock cannot be read: everything counts as new.")
        base_lock = b""
    with Repo() as repo:
        params = changes(repo.params.diff(a_rev=base, b_rev=head), strict=not notes)
        metric_changes = changes(repo.metrics.diff(a_rev=base, b_rev=head), strict=not notes)
    metrics = judge(metric_changes, parse_tolerances(show(head, TOLERANCES_PATH) or b""))
    if show(base, "dvc.yaml") is None:
        notes.append("The base has no pipeline: everything is new.")
    if show(base, TOLERANCES_PATH) not in (None, show(head, TOLERANCES_PATH)):
        notes.append(f"`{TOLERANCES_PATH}` itself changed; the verdicts use the new one.")
    untracked = git(HERE, "ls-files", "--others", "--exclude-standard").splitlines() if is_working_tree else []
    if untracked:
        notes.append(f"Untracked files are not reviewed: {', '.join(f'`{name}`' for name in untracked[:5])}.")

    with tempfile.TemporaryDirectory(prefix="review-") as folder:
        files = Path(folder)
        with tarfile.open(fileobj=io.BytesIO(git_bytes(HERE, "archive", head))) as archive:
            archive.extractall(files, filter="data")
        lock = out_of_date(files)
        # With the base's dvc.lock DVC tells what this change made stale.
        (files / "dvc.lock").write_bytes(base_lock or b"schema: '2.0'\nstages: {}\n")
        stages = with_descendants(files, out_of_date(files, with_outs=False))
    declared = declared_figures(base) | declared_figures(head)
    figures = sorted(path for path in declared if blob(base, path) != blob(head, path))
    return Review(base, head, params, metrics, stages, lock, figures, notes)


def changes(diff: dict[str, Any], strict: bool = True) -> list[Change]:
    """DVC's {'diff': {file: {name: {'old', 'new'}}}} as a list sorted by name; equal values are left out.

    Raises:
        PipelineError: strict, and a side cannot be read; a file that one side does not have is no error.
    """
    for error in errors_in(diff.get("errors", {})) if strict else []:
        if not isinstance(error, FileNotFoundError):
            raise PipelineError(f"DVC cannot read one side: {type(error).__name__}: {' '.join(str(error).split())}")
    return sorted(
        (
            Change(name, values.get("old"), values.get("new"))
            for names in diff.get("diff", {}).values()
            for name, values in names.items()
            if values.get("old") != values.get("new")
        ),
        key=lambda change: change.name,
    )


def errors_in(values: Any) -> list[Exception]:
    """All exceptions in the nested dictionaries in which DVC returns them."""
    if isinstance(values, dict):
        return [error for value in values.values() for error in errors_in(value)]
    return [values] if isinstance(values, Exception) else []


def judge(metrics: list[Change], tolerances: dict[str, Tolerance]) -> list[MetricChange]:
    """Each metric's verdict by the first pattern that fits its name, in the order of VERDICTS."""
    other_data = any(metric.name == "dataset" and None not in (metric.old, metric.new) for metric in metrics)

    def verdict(metric: Change) -> str:
        tolerance = tolerance_of(metric.name, tolerances)
        if tolerance is None:
            return "not judged"
        if other_data:
            return "not comparable"
        if not is_number(metric.old):
            return "new"
        if not is_number(metric.new):
            return "gone"
        return tolerance.verdict(metric.old, metric.new)

    judged = [MetricChange(metric.name, metric.old, metric.new, verdict(metric)) for metric in metrics]
    return sorted(judged, key=lambda metric: (VERDICTS.index(metric.verdict), metric.name))


def out_of_date(files: Path, with_outs: bool = True) -> dict[str, list[str]]:
    """The stages of a checkout without cache whose entry in dvc.lock differs from its files, with the reasons.

    Without `with_outs` only what the stages read counts, not what they wrote. Data and weights are not
    in git, so their absence is no reason; dvc.lock must agree with itself about them. (`dvc repro --dry
    --allow-missing` is no help here: it stops at the first stale stage whose data is missing.)
    """
    (files / ".dvc").mkdir(exist_ok=True)
    # Its own cache folder for the site, or every review would leave one more in the user's.
    (files / ".dvc/config.local").write_text(f"[core]\n    no_scm = true\n    site_cache_dir = {files / '.dvc/site'}\n")
    try:
        with Repo(files) as repo:
            cached = {out.def_path for out in repo.index.outs if out.use_cache}
            status = repo.status()
            locked = locked_paths(files / "dvc.lock")
    except DvcException as error:
        reason = " ".join(str(error).split()).replace(os.path.relpath(files) + "/", "")
        raise PipelineError(f"DVC cannot read the pipeline of the reviewed commit: {reason}") from None
    reasons: dict[str, list[str]] = {}
    for address, entries in status.items():
        stage = stage_name(address)
        for entry in entries:
            if isinstance(entry, str):  # "changed command", "always changed"
                reasons.setdefault(stage, []).append(entry)
                continue
            ((kind, paths),) = entry.items()
            if kind == "changed outs" and not with_outs:
                continue
            for path, state in paths.items():
                if isinstance(state, dict):  # of params.yaml: {section: state}
                    reasons.setdefault(stage, []).extend(changed_values(files, stage, path, list(state)))
                elif path not in locked.get(stage, set()) and not stage.endswith(".dvc"):
                    reasons.setdefault(stage, []).append(f"`{path}` is not in dvc.lock")
                elif path not in cached:
                    reasons.setdefault(stage, []).append(f"`{path}` {state}")
    for stage, path in dvcfiles.contradictions(locked_stages(files / "dvc.lock")):
        reasons.setdefault(stage, []).append(f"`{path}` is another version than the one that dvc.lock has as an out")
    return reasons


def changed_values(files: Path, stage: str, params_file: str, sections: list[str]) -> list[str]:
    """For each value that differs between dvc.lock and the file: `section.name` old → new.

    `sections` are the entries under a stage's `params`: whole sections, or dotted names of single values.
    """

    def flat(values: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for section in sections:
            value = values[section] if section in values else dvcfiles.value_at(values, section)
            found |= (
                {f"{section}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {section: value}
            )
        return found

    old = flat(locked_stages(files / "dvc.lock").get(stage, {}).get("params", {}).get(params_file, {}))
    new = flat(load_yaml((files / params_file).read_text()) or {})
    names = [name for name in new | old if old.get(name) != new.get(name)]
    return [f"`{name}` {text(old.get(name))} → {text(new.get(name))}" for name in names]


def is_lock(content: bytes) -> bool:
    """Whether this can be read as a dvc.lock; an empty one, for none, can."""
    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError:
        return False
    return values is None or (isinstance(values, dict) and isinstance(values.get("stages", {}), dict))


def locked_stages(lock: Path) -> dict[str, Any]:
    return (load_yaml(lock.read_text()) or {}).get("stages", {}) if lock.is_file() else {}


def locked_paths(lock: Path) -> dict[str, set[str]]:
    """For each stage the dependencies and outs that dvc.lock has a hash for."""
    return {
        name: {item["path"] for kind in ("deps", "outs") for item in stage.get(kind, [])}
        for name, stage in locked_stages(lock).items()
    }


def with_descendants(files: Path, stale: dict[str, list[str]]) -> dict[str, list[str]]:
    """The stale stages and those after them, in the pipeline's order."""
    with Repo(files) as repo:
        before = {
            stage_name(stage.addressing): {stage_name(up.addressing) for up in repo.index.graph.successors(stage)}
            for stage in repo.index.graph
        }
    result: dict[str, list[str]] = {}
    for stage in TopologicalSorter(before).static_order():
        after = sorted(before[stage] & set(result))
        reasons = stale.get(stage, []) + ([f"after {', '.join(after)}"] if after else [])
        if reasons:
            result[stage] = reasons
    return result


def stage_name(address: str) -> str:
    """`train` of `dvc.yaml:train`; the whole of `raw.csv.dvc`."""
    return address.rpartition(":")[2]


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
    verdict = {
        0: "✅ Nothing speaks against it.",
        WORSE: "❌ A metric is worse than tolerated, gone, or of another data set.",
        LOCK_OUT_OF_DATE: "❌ The results are not those of this code: run `dvc repro`, commit dvc.lock and reports/.",
    }[review.exit_code]
    parts = [f"## Review of `{review.head[:10]}` against `{review.base[:10]}`", verdict, *review.notes]

    parts.append("### Parameters")
    if review.params:
        parts.append(table(["parameter", "old", "new"], [[c.name, text(c.old), text(c.new)] for c in review.params]))
    else:
        parts.append("No parameter changed.")

    parts.append("### Metrics")
    if review.metrics:
        rows = [[m.name, text(m.old), text(m.new), *difference(m.old, m.new), m.verdict] for m in review.metrics]
        parts.append(table(["metric", "old", "new", "difference", "%", "verdict"], rows))
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
        parts.append(f"Side by side: `dvc plots diff {review.base[:10]} {review.head[:10]}`")
    else:
        shown = [
            [Path(path).stem, picture(review.base, path, file_url), picture(review.head, path, file_url)]
            for path in review.figures
        ]
        parts.append(table(["figure", "before", "after"], shown))
    return "\n\n".join(parts)


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
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"],
        capture_output=True,
        text=True,
    )
    if found.returncode == 0:
        return found.stdout.strip()
    experiments = git(HERE, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    return next((line.split()[1] for line in experiments if line.split()[0].endswith(f"/{name}")), None)


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
