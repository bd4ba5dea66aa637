"""What several test files need: small data, copies of the project, and running its commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.data import Split
from pipeline.params import Params

PROJECT = Path(__file__).resolve().parents[1]


def small_params(**changes: Any) -> Params:
    """Valid parameters of a network that trains in a second; `model__n_layers=2` changes one."""
    values = yaml.safe_load((PROJECT / "params.yaml").read_text())
    values["data"]["dataset"] = "digits"
    values["model"].update(n_layers=2)
    values["train"].update(n_epochs=2, batch_size=64)
    values["evaluate"].update(manifold_size=5)
    for name, value in changes.items():
        section, key = name.split("__")
        values[section][key] = value
    return Params.model_validate(values)


def random_split(n: int, seed: int = 0) -> Split:
    """n noise images; every digit occurs where n is at least 10."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    return Split(images, (np.arange(n) % 10).astype(np.uint8))


def write_params(params: Params, folder: Path = Path()) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params.model_dump(), sort_keys=False))


def copy_project(target: Path) -> Path:
    """The project's files as they are in the working tree, as the one commit of a new git repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (PROJECT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target / name)
    git(target, "init", "-q", "-b", "main")
    git(target, "add", "-A")
    git(target, "commit", "-q", "-m", "copy")
    return target


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with its Python first in PATH and no tracking or DVC setting inherited."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_", "MNIST_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    identity = {"GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@example.com"}
    identity |= {"GIT_COMMITTER_NAME": "Test", "GIT_COMMITTER_EMAIL": "test@example.com"}
    return inherited | identity | {"PATH": path, "DVC_NO_ANALYTICS": "1"} | changes


def run(folder: Path, *command: str, ok: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m …` in a folder; with ok, a failure fails the test and shows what was printed."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(**changes),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    if ok and done.returncode != 0:
        raise AssertionError(f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done
