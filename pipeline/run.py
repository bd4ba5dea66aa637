"""Reproduce the pipeline and say where the results are: what `make run` calls.

    python -m pipeline.run

It is `dvc repro` with five additions: where no MNIST mirror can be reached it runs the same pipeline
on scikit-learn's digits, as an explicit parameter change that `git diff` shows; after it MLflow
holds a run for the results also where DVC took them from its cache (`pipeline.tracking.sync`); lock files
that a killed DVC left half written do not stop it; DVC's hints on git and remotes are left out; and it
ends with what changed since the last commit and the `git add` for parameters, results and the pipeline's
code.
"""

import json
import sys
from pathlib import Path
from typing import Any

from pipeline.autoencoder import datasets
from pipeline.core import dvcfiles
from pipeline.core.dvc_cli import dvc, mend_torn_locks
from pipeline.core.errors import PipelineError, run_command
from pipeline.core.git import file_at, git
from pipeline.core.repository import RAW_FOLDER, main_root
from pipeline.params import Params, load_params
from pipeline.tracking import provenance, store
from pipeline.tracking.progress import announce_data
from pipeline.tracking.sync import sync

METRICS_PATH = Path("reports/evaluate.json")
HEADLINES = {Path("reports/train.json"): ["valid.best_mse"], METRICS_PATH: ["test.mse", "test.psnr_db"]}
RESULTS = ["params.yaml", "dvc.lock", "reports"]


def main() -> None:
    params = load_params()
    mend_torn_locks(Path())
    if params.data.dataset == "mnist" and mnist_is_out_of_reach():
        print(
            "MNIST cannot be reached: no mirror answers (MNIST_MIRROR names another one). "
            "Running on scikit-learn's digits instead: dvc exp run -S data.dataset=digits"
        )
        dvc("exp", "run", "-S", "data.dataset=digits")
    else:
        dvc("repro")
    if store.is_on():
        try:
            sync()
        except PipelineError as error:  # the results do not depend on a store
            print(f"warning: {error}", file=sys.stderr)
    params = load_params()
    print_results()
    print_changes(params)
    announce_data(params)


def mnist_is_out_of_reach() -> bool:
    """Whether prepare would have to download MNIST and no mirror so much as answers."""
    if dvcfiles.is_up_to_date("prepare") or datasets.is_cached(main_root() / RAW_FOLDER):
        return False
    return datasets.reachable_mirror() is None


def print_results() -> None:
    metrics = json.loads(METRICS_PATH.read_text())["test"]
    print(
        f"\nTest MSE {metrics['mse']:.4f} ({metrics['psnr_db']:.2f} dB); PCA of the same size "
        f"{metrics['pca_mse']:.4f}, mean image {metrics['mean_image_mse']:.4f}\n"
        "  metrics   reports/*.json, or compared with experiments: make experiments\n"
        "  figures   reports/figures/\n"
        "  model     models/autoencoder.safetensors\n"
        "  MLflow    make ui"
    )


def print_changes(params: Params) -> None:
    """Print what differs from the last commit and how to commit it; nothing if nothing differs or git is missing."""
    try:
        if not git(Path(), "status", "--porcelain", "--", *RESULTS):
            return
    except (OSError, PipelineError):
        return
    committed = provenance.committed_params()
    changes: list[tuple[str, Any, Any]] = [(name, committed.get(name), value) for name, value in params.flat().items()]
    for path, names in HEADLINES.items():
        try:
            old = json.loads(file_at("HEAD", f"./{path}") or "{}")
        except ValueError:  # committed with a merge's conflicts, say
            old = {}
        new = json.loads(path.read_text())
        for name in names:
            changes.append((name, rounded(dvcfiles.value_at(old, name)), rounded(dvcfiles.value_at(new, name))))
    lines = [f"\n  {name:<22} {old} → {new}" for name, old, new in changes if old != new]
    code = [path for path in provenance.changed_code() or [] if path.startswith(("pipeline/", "dvc.yaml"))]
    print(f"\nChanged since the last commit{''.join(lines) or ': no parameter and no headline metric'}")
    print(f"  to commit it: git add {' '.join(RESULTS + code)}")


def rounded(metric: float | None) -> str | None:
    """A metric with four digits: two processors may differ in later ones."""
    return None if metric is None else f"{metric:.4g}"


if __name__ == "__main__":
    run_command(main)
