"""Reproduce the pipeline and say where the results are: what `make run` calls.

    python -m pipeline.run

It is `dvc repro` with five additions: where no MNIST mirror can be reached it runs the same pipeline
on scikit-learn's digits, as an explicit parameter change that `git diff` shows; after it MLflow
holds a run for the results also where DVC took them from its cache (`pipeline.sync`); lock files
that a killed DVC left half written do not stop it; DVC's hints on git and remotes are left out; and it
ends with what changed since the last commit and the `git add` for parameters, results and the pipeline's
code.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import dvcfiles, provenance, sources, tracking
from pipeline.dvc_locks import mend_torn_locks
from pipeline.errors import PipelineError, run_command
from pipeline.git import git
from pipeline.params import Params, load_params
from pipeline.progress import announce_dataset
from pipeline.repository import main_root
from pipeline.sync import sync

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
    if tracking.is_on():
        try:
            sync()
        except PipelineError as error:  # the results do not depend on a store
            print(f"warning: {error}", file=sys.stderr)
    params = load_params()
    print_results()
    print_changes(params)
    announce_dataset(params)


def mnist_is_out_of_reach() -> bool:
    """Whether prepare would have to download MNIST and no mirror so much as answers."""
    if dvcfiles.is_up_to_date("prepare") or sources.is_cached(main_root() / sources.RAW_FOLDER):
        return False
    return sources.reachable_mirror() is None


def dvc(*arguments: str) -> None:
    """Run DVC with this Python, without its hints on git and remotes.

    Raises:
        PipelineError: DVC failed; it has said why.
    """
    # By its path and -P: neither this folder's modules nor the working folder's come before installed ones.
    command = [sys.executable, "-P", str(Path(__file__).with_name("dvc_without_hints.py")), *arguments]
    status = subprocess.run(command, env=environment_of_stages()).returncode
    if status != 0:
        raise PipelineError(f"`dvc {' '.join(arguments)}` failed; see the error above")


def environment_of_stages() -> dict[str, str]:
    """This process's environment with this Python's folder first in PATH, for `python` is the stages' command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}


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
            old = json.loads(provenance.file_at("HEAD", f"./{path}") or "{}")
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
