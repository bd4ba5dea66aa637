"""Reproduce the committed results from scratch in a temporary clone of HEAD, and compare.

    python -m pipeline.review.verify

The clone has its own cache and writes nothing to MLflow; only the raw data is copied from here. For each output the
command prints *identical*, *within tolerance* (of metrics.yaml) or *different*. It lists the metrics that changed and
how the environment differs from the one recorded with the results.

Exit codes: 0 every output is identical; 4 within tolerance; 1 different; 2 the results cannot be reproduced here, and
the message gives the reason; 70 a bug in this command.
"""

import argparse
import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import chdir, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from pipeline.core import dvcfiles, processes
from pipeline.core.dvc_cli import stage_environment
from pipeline.core.environment import RECORD_PATH, recorded
from pipeline.core.errors import EXIT_BUG, PipelineError, run_command
from pipeline.core.files import flat
from pipeline.core.git import HOOK_VARIABLES, git
from pipeline.core.metrics import METRICS_PATH, Metric, is_number, judged_by, parse_metrics
from pipeline.core.repository import RAW_FOLDER, main_root
from pipeline.experiment import EXPERIMENT

# From best to worst. An output that is not judged has no tolerance and gets the overall verdict.
IDENTICAL, NOT_JUDGED, WITHIN, DIFFERENT = "identical", "not judged", "within tolerance", "different"
VERDICTS = (IDENTICAL, NOT_JUDGED, WITHIN, DIFFERENT)
EXIT_CODES = {IDENTICAL: 0, WITHIN: 4, DIFFERENT: 1}


@dataclass(frozen=True)
class Number:
    """A number that changed, with its verdict."""

    name: str
    committed: float
    reproduced: float
    margin: float | None  # the allowed difference; None if the number has no tolerance
    verdict: str

    def order(self) -> tuple[int, float]:
        """Sort key from best to worst: the verdict, then the change relative to its margin, or to the number itself."""
        moved = abs(self.reproduced - self.committed)
        return VERDICTS.index(self.verdict), moved / (self.margin or abs(self.committed) or 1)


@dataclass(frozen=True)
class Comparison:
    """The verdict on an output compared with the committed one, and the numbers that changed."""

    path: str
    verdict: str
    detail: str
    numbers: list[Number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    root = main_root()
    with processes.sigterm_as_exit(), temporary_folder() as folder:
        clone = Path(folder, "clone")
        commit = clone_head(root, clone)
        with chdir(clone):
            expected, cached = dvcfiles.locked_outs(), dvcs_outs()
            if missing := sorted(dvcfiles.all_outs() - set(expected)):
                why = "run `dvc repro`, commit dvc.lock and reports/"
                raise PipelineError(f"dvc.lock records no result for {', '.join(missing)}: {why}")
            wrong = not_as_locked(expected, cached)
            record_then = recorded()
            metrics = parse_metrics(read(Path(METRICS_PATH)) or b"")
            committed = {path: committed_content(path, md5, root) for path, md5 in expected.items()}
            can_judge = any(has_tolerance(path, content, metrics) for path, content in committed.items())
            forget_results(expected)
        print(f"verify: reproducing {commit[:10]} from scratch in {clone}", file=sys.stderr, flush=True)
        reproduce(root, clone)
        with chdir(clone):
            comparisons = apply_verdict(
                [
                    Comparison(path, DIFFERENT, wrong[path], [])
                    if path in wrong
                    else compare(path, md5, committed[path], path in cached, metrics)
                    for path, md5 in expected.items()
                ]
            )
            here = recorded()["environment"]
        is_of_these = all(expected.get(path) == md5 for path, md5 in record_then["outs"].items())
        print(report(commit, comparisons))
        print(environments(record_then["environment"], here, is_of_these))
    if git(root, "status", "--porcelain", "--untracked-files=no"):
        print("\nThe working tree differs from the commit; only the commit was verified.")
    verdict = worst(comparisons)
    if verdict == WITHIN and not can_judge:
        raise PipelineError(f"nothing can be judged: no committed metric matches a pattern of {METRICS_PATH}")
    sys.exit(EXIT_CODES[verdict])


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True)


def clone_head(root: Path, clone: Path) -> str:
    """Clone the repository's HEAD, with a separate DVC cache, and return the commit.

    Raises:
        PipelineError: there is no commit to clone.
    """
    commit = git(root, "rev-parse", "HEAD")
    git(root, "clone", "--quiet", "--no-checkout", str(root), str(clone))
    git(clone, "checkout", "--quiet", "--detach", commit)
    # The user's DVC configuration may name a cache that all projects share.
    local = f"[core]\n    site_cache_dir = {clone / '.dvc/site'}\n[cache]\n    dir = {clone / '.dvc/cache'}\n"
    (clone / ".dvc/config.local").write_text(local)
    return commit


def not_as_locked(expected: dict[str, str], cached: set[str]) -> dict[str, str]:
    """Return {output: reason} for outputs that a fresh clone lacks or has in another version than dvc.lock records.

    Cached outputs may be absent.
    """
    found = dvcfiles.md5s(list(expected))
    other = {path: "the file in git is not the one in dvc.lock" for path in found if found[path] != expected[path]}
    absent = {path: "in dvc.lock, not in git" for path in expected if path not in found and path not in cached}
    return {path: f"{why}, see `make review`" for path, why in (other | absent).items()}


def committed_content(path: str, md5: str, root: Path) -> bytes | None:
    """Return a committed output from the clone if it is in git, else from the workspace if it is the same there."""
    if (content := read(Path(path))) is not None:
        return content
    is_same = dvcfiles.md5s([str(root / path)]) == {str(root / path): md5}
    return read(root / path) if is_same else None


def dvcs_outs() -> set[str]:
    """Return the outputs that need not be in git, because DVC caches them. Metrics must be in git."""
    from dvc.repo import Repo

    with Repo() as repo:
        return {out.def_path for out in repo.index.outs if out.use_cache and not out.metric}


def forget_results(expected: dict[str, str]) -> None:
    """Delete everything that a reproduction makes, so that no committed file passes for a reproduced one."""
    for path in [*map(Path, expected), Path("dvc.lock"), RECORD_PATH]:
        path.unlink(missing_ok=True)


def reproduce(root: Path, clone: Path) -> None:
    """Run every stage in the clone.

    Raises:
        PipelineError: a stage failed.
    """
    if (root / RAW_FOLDER).is_dir():
        shutil.copytree(root / RAW_FOLDER, clone / RAW_FOLDER, dirs_exist_ok=True)
    variables = stage_environment() | {"PIPELINE_TRACKING": "0"}
    for name in HOOK_VARIABLES:
        variables.pop(name, None)
    command = [sys.executable, "-m", "dvc", "repro"]
    # Its own process group, so that no process keeps running in a folder that is being deleted.
    with subprocess.Popen(command, cwd=clone, env=variables, stdout=sys.stderr, start_new_session=True) as process:
        try:
            status = process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if status != 0:
        raise PipelineError("the commit cannot be run here; see the error above")


def compare(path: str, md5: str, committed: bytes | None, is_cached: bool, metrics: dict[str, Metric]) -> Comparison:
    """Compare an output in the working folder with the committed one, whose MD5 is in dvc.lock.

    Metrics and tables are judged number by number, and data must be bit-identical. Weights and figures get the verdict
    of the metrics. So do cached outputs (`is_cached`) whose committed content is not available here, because later
    stages compute metrics from them.
    """
    content = read(Path(path))
    if content is None:
        return Comparison(path, DIFFERENT, "was not produced", [])
    if dvcfiles.md5s([path])[path] == md5:
        return Comparison(path, IDENTICAL, "", [])
    if path.startswith(EXPERIMENT.data_folder):
        return Comparison(path, DIFFERENT, "data must be bit-identical", [])
    kind = Path(path).suffix
    if kind in (".json", ".csv"):
        if committed is None and is_cached:
            return Comparison(path, NOT_JUDGED, "follows the metrics", [])
        if committed is None:
            return Comparison(path, DIFFERENT, "the committed file is neither in git nor in the workspace", [])
        return compare_values(path, values(path, committed), values(path, content), metrics)
    if kind == ".safetensors":
        return compare_tensors(path, committed, content)
    return Comparison(path, NOT_JUDGED, "follows the metrics", [])


def has_tolerance(path: str, content: bytes | None, metrics: dict[str, Metric]) -> bool:
    """Whether some value of a committed JSON or CSV file can be judged."""
    if content is None or Path(path).suffix not in (".json", ".csv"):
        return False
    return any(judged_by(name, metrics) is not None for name in values(path, content))


def compare_values(
    path: str, old: dict[str, list[Any]], new: dict[str, list[Any]], metrics: dict[str, Metric]
) -> Comparison:
    if {name: len(column) for name, column in old.items()} != {name: len(column) for name, column in new.items()}:
        return Comparison(path, DIFFERENT, "the names or the number of values differ", [])
    numbers = []
    for name in old:
        moved = [(a, b) for a, b in zip(old[name], new[name], strict=True) if a != b]
        if any(not (is_number(a) and is_number(b)) for a, b in moved):
            return Comparison(path, DIFFERENT, f"{name}: a text differs or a number is not finite", [])
        tolerance = judged_by(name, metrics)
        judged = [judge(name, a, b, tolerance) for a, b in moved]
        if judged:
            numbers.append(max(judged, key=Number.order))  # the worst value of a column
    verdict = max((number.verdict for number in numbers), key=VERDICTS.index, default=NOT_JUDGED)
    return Comparison(path, verdict, "" if verdict != NOT_JUDGED else "follows the metrics", numbers)


def judge(name: str, old: float, new: float, tolerance: Metric | None) -> Number:
    """Judge a number that changed; a better number than the committed one is not a reproduction either."""
    if tolerance is None:
        return Number(name, old, new, None, NOT_JUDGED)
    margin = tolerance.margin(old)
    return Number(name, old, new, margin, WITHIN if abs(new - old) <= margin else DIFFERENT)


def compare_tensors(path: str, committed: bytes | None, content: bytes) -> Comparison:
    """Compare weights: they must have the same names, types and shapes, and otherwise get the metrics' verdict."""
    try:
        new = load(content)
        old = load(committed) if committed is not None else None
    except SafetensorError as error:
        return Comparison(path, DIFFERENT, f"cannot be read: {error}", [])
    if old is None:
        return Comparison(path, NOT_JUDGED, "follows the metrics", [])
    if {name: (t.dtype, t.shape) for name, t in old.items()} != {name: (t.dtype, t.shape) for name, t in new.items()}:
        return Comparison(path, DIFFERENT, "names, types or shapes differ", [])
    return Comparison(path, NOT_JUDGED, f"follows the metrics; {distance(old, new):.2g} apart (L2, relative)", [])


def is_floating(tensor: np.ndarray) -> bool:
    return np.issubdtype(tensor.dtype, np.floating)


def distance(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> float:
    """Return the L2 norm of the difference of all floating-point tensors, relative to the norm of the old ones."""
    names = [name for name in old if is_floating(old[name])]
    difference = sum(float(((new[name].astype(np.float64) - old[name]) ** 2).sum()) for name in names)
    norm = sum(float((old[name].astype(np.float64) ** 2).sum()) for name in names)
    return math.sqrt(difference / norm) if norm else math.inf


def apply_verdict(comparisons: list[Comparison]) -> list[Comparison]:
    """Give outputs that are not judged the overall verdict."""
    verdict = worst(comparisons)
    return [
        Comparison(each.path, verdict, each.detail, each.numbers) if each.verdict == NOT_JUDGED else each
        for each in comparisons
    ]


def worst(comparisons: list[Comparison]) -> str:
    verdict = max((each.verdict for each in comparisons), key=VERDICTS.index)
    return WITHIN if verdict == NOT_JUDGED else verdict


def values(path: str, content: bytes) -> dict[str, list[Any]]:
    """Return a JSON file's values by dotted name, or a CSV file's columns by `<file's stem>.<column>`."""
    if path.endswith(".json"):
        return {name: [value] for name, value in flat(json.loads(content)).items()}
    table = csv.DictReader(io.StringIO(content.decode()))
    columns: dict[str, list[Any]] = {f"{Path(path).stem}.{name}": [] for name in table.fieldnames or ()}
    for row in table:
        for name, value in row.items():
            columns[f"{Path(path).stem}.{name}"].append(as_number(value))
    return columns


def as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def report(commit: str, comparisons: list[Comparison]) -> str:
    """Format the verdict on each output, and the numbers that changed."""
    width = max(len(each.path) for each in comparisons)
    lines = [f"{each.path:{width}}  {each.verdict}{f' ({each.detail})' if each.detail else ''}" for each in comparisons]
    numbers = [number for each in comparisons for number in each.numbers]
    if numbers:
        width = max(len(number.name) for number in numbers)
        lines.append(f"\n{'metric':{width}}  {'committed':>12}  {'reproduced':>12}  {'tolerance':>12}")
    for number in numbers:
        margin = "—" if number.margin is None else f"{number.margin:.3g}"
        both = f"{number.committed:>12.7g}  {number.reproduced:>12.7g}"
        lines.append(f"{number.name:{width}}  {both}  {margin:>12}  {number.verdict}")
    summary = {
        IDENTICAL: "every output is bit-identical to the committed one",
        WITHIN: f"not every output is identical; the metrics are within the tolerances of {METRICS_PATH}",
        DIFFERENT: "the committed results could not be reproduced",
    }[worst(comparisons)]
    return "\n".join([*lines, f"\n{commit[:10]}: {summary}"])


def environments(recorded: dict[str, str], here: dict[str, str], is_of_these: bool) -> str:
    """Describe how the environment recorded with the committed results differs from this one."""
    if not recorded:
        return f"\nEnvironment: none was recorded with the results; there is no {RECORD_PATH}."
    of_others = "" if is_of_these else " (recorded with other results)"
    names = [name for name in recorded | here if recorded.get(name) != here.get(name)]
    if not names:
        return f"\nEnvironment: the same as recorded{of_others}."
    changes = [f"  {name}: {recorded.get(name, '—')} when recorded, {here.get(name, '—')} here" for name in names]
    return "\n".join([f"\nEnvironment: differs from the recorded one{of_others}", *changes])


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


if __name__ == "__main__":
    # Python exits with 1 after a bug; here 1 means that results differ.
    run_command(main, exit_code_of_a_bug=EXIT_BUG)
