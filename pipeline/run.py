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
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import dvcfiles, sources, tracking
from pipeline.errors import PipelineError, run_command
from pipeline.params import load_params
from pipeline.progress import announce_dataset
from pipeline.repository import main_root
from pipeline.sync import sync

METRICS_PATH = Path("reports/evaluate.json")
RWLOCK_PATH = Path(".dvc/tmp/rwlock")
LOCK_PATH = Path("dvc.lock")


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


def mend_torn_locks(root: Path) -> None:
    """Delete DVC's list of its running processes where it is half written; take a half-written dvc.lock from git.

    DVC empties both before it writes them, in pieces of 8 KB, and refuses what a kill left of them at every later
    `dvc repro` (https://github.com/treeverse/dvc/issues/7615). What git's dvc.lock does not have is run again, a
    training from its checkpoint.
    """
    if stays_torn(root / RWLOCK_PATH, is_json):
        (root / RWLOCK_PATH).unlink(missing_ok=True)
        print(f"{RWLOCK_PATH} was left half written when DVC was killed; deleted", file=sys.stderr)
    if stays_torn(root / LOCK_PATH, ends_a_line):
        (root / LOCK_PATH).unlink(missing_ok=True)
        subprocess.run(["git", "restore", str(LOCK_PATH)], cwd=root, stderr=subprocess.DEVNULL)
        print(f"{LOCK_PATH} was left half written when DVC was killed; back to git's", file=sys.stderr)


def stays_torn(path: Path, is_whole: Callable[[str], bool]) -> bool:
    """Whether a file is there and not whole, now and half a second later: longer than a DVC that lives needs for it."""
    for wait in (0, 0.5):
        time.sleep(wait)
        if not path.is_file() or is_whole(path.read_text()):
            return False
    return True


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def ends_a_line(text: str) -> bool:
    """As all YAML that DVC writes does; one with a merge's conflicts, which is its author's affair, does too."""
    return text.endswith("\n")


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
