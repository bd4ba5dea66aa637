"""Reproduce the pipeline and say where the results are: what `make run` calls.

    python -m pipeline.run

It is `dvc repro` with three additions: where no MNIST mirror can be reached it runs the same pipeline
on scikit-learn's digits, as an explicit parameter change that `git diff` shows; after it MLflow
holds a run for the results also where DVC took them from its cache (`pipeline.sync`); and lock files
that a killed DVC left half written do not stop it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from pipeline import dvcfiles, sources, tracking
from pipeline.dvc_locks import mend_torn_locks
from pipeline.errors import PipelineError, run_command
from pipeline.params import load_params
from pipeline.progress import announce_dataset
from pipeline.repository import main_root
from pipeline.sync import sync

METRICS_PATH = Path("reports/evaluate.json")


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
    print_results()


def mnist_is_out_of_reach() -> bool:
    """Whether prepare would have to download MNIST and no mirror so much as answers."""
    if dvcfiles.is_up_to_date("prepare") or sources.is_cached(main_root() / sources.RAW_FOLDER):
        return False
    return sources.reachable_mirror() is None


def dvc(*arguments: str) -> None:
    """Run DVC with this Python.

    Raises:
        PipelineError: DVC failed; it has said why.
    """
    status = subprocess.run([sys.executable, "-m", "dvc", *arguments], env=environment_of_stages()).returncode
    if status != 0:
        raise PipelineError(f"`dvc {' '.join(arguments)}` failed; what went wrong stands above")


def environment_of_stages() -> dict[str, str]:
    """This process's environment with this Python's folder first in PATH, for `python` is the stages' command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}


def print_results() -> None:
    metrics = json.loads(METRICS_PATH.read_text())["test"]
    print(
        f"\nTest MSE {metrics['mse']:.4f} ({metrics['psnr_db']:.2f} dB); PCA of the same size "
        f"{metrics['pca_mse']:.4f}, mean image {metrics['mean_image_mse']:.4f}\n"
        "  metrics   reports/*.json, or: .venv/bin/dvc metrics show\n"
        "  figures   reports/figures/\n"
        "  model     models/autoencoder.safetensors\n"
        "  MLflow    make ui"
    )
    announce_dataset(load_params())


if __name__ == "__main__":
    run_command(main)
