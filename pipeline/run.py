"""Reproduce the pipeline and print where the results are. `make run` calls this.

    python -m pipeline.run

It is `dvc repro` with five additions. The experiment may choose another command, for example if its data cannot be
reached. Afterwards MLflow has a run for the results, even if DVC restored them from its cache
(`pipeline.tracking.sync`). Lock files that a killed DVC left half written do not stop it. DVC's hints on git and
remotes are not shown. At the end it prints what changed since the last commit, and the `git add` for parameters,
results and the pipeline's code.
"""

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.core import dvcfiles
from pipeline.core.dvc_cli import dvc, repair_truncated_locks
from pipeline.core.errors import PipelineError, run_command
from pipeline.core.files import numbers
from pipeline.core.git import file_at, git
from pipeline.core.metrics import load_metrics, with_role
from pipeline.core.repository import COMPARISON
from pipeline.experiment import EXPERIMENT
from pipeline.params import Params, load_params
from pipeline.tracking import provenance, store
from pipeline.tracking.progress import announce_data
from pipeline.tracking.sync import sync

RESULTS = ["params.yaml", "dvc.lock", "reports"]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params, metrics = load_params(), load_metrics()
    headline = [with_role(role, metrics)[0] for role in ("select", "report")]
    repair_truncated_locks(Path())
    dvc(*EXPERIMENT.how_to_run(params))
    if store.is_on():
        try:
            sync()
        except PipelineError as error:  # the results do not depend on a store
            print(f"warning: {error}", file=sys.stderr)
    params = load_params()
    print_results()
    print_changes(params, headline)
    announce_data(params)


def print_results() -> None:
    print(
        f"\n{EXPERIMENT.summary()}\n"
        "  metrics   reports/*.json, or compared with experiments: make experiments\n"
        "  figures   reports/figures/\n"
        f"  model     {EXPERIMENT.model_path}\n"
        "  MLflow    make ui"
    )


def print_changes(params: Params, headline: list[str]) -> None:
    """Print what differs from the last commit, the metrics in `headline` included, and how to commit it.

    Print nothing if git is missing.
    """
    try:
        # The files of `make compare` are not results of this run.
        compared = git(Path(), "status", "--porcelain", "--", str(COMPARISON))
        if not git(Path(), "status", "--porcelain", "--", *RESULTS, f":!{COMPARISON}"):
            print("\nNo result differs from the last commit.")
            return
    except (OSError, PipelineError):
        return
    committed = provenance.committed_params()
    changes: list[tuple[str, Any, Any]] = [(name, committed.get(name), value) for name, value in params.flat().items()]
    old = committed_metrics()
    new: dict[str, float] = {}
    for path in metric_files():
        new |= numbers(json.loads(Path(path).read_text()), ".")
    for name in headline:
        changes.append((name, rounded(old.get(name)), rounded(new.get(name))))
    lines = [f"\n  {name:<22} {old} → {new}" for name, old, new in changes if old != new]
    code = [path for path in provenance.changed_code() or [] if path.startswith(("pipeline/", "dvc.yaml"))]
    print(f"\nChanged since the last commit{''.join(lines) or ': no parameter and no headline metric'}")
    without = [f"':!{COMPARISON}'"] if compared else []
    print(f"  to commit it: git add {' '.join([*RESULTS, *code, *without])}")


def metric_files() -> list[str]:
    """Return the JSON files that the training and the evaluation write."""
    outs = [path for stage in (EXPERIMENT.train, EXPERIMENT.evaluate) for path in dvcfiles.declared(stage)["outs"]]
    return [path for path in outs if path.endswith(".json")]


def committed_metrics() -> dict[str, float]:
    """Return the numbers in the last commit's metrics files; files that cannot be read are skipped."""
    found: dict[str, float] = {}
    for path in metric_files():
        with suppress(ValueError):  # for example committed with merge conflicts
            found |= numbers(json.loads(file_at("HEAD", f"./{path}") or "{}"), ".")
    return found


def rounded(metric: float | None) -> str | None:
    """Format a metric with four significant digits: two processors may differ in later ones."""
    return None if metric is None else f"{metric:.4g}"


if __name__ == "__main__":
    run_command(main)
