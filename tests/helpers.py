"""Helpers for several test files: small data, copies of the project, and running its commands."""

import os
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline import train
from pipeline.autoencoder.model import Architecture, AutoEncoder, save_model
from pipeline.autoencoder.splits import Split
from pipeline.autoencoder.trainer import Callback
from pipeline.params import Params

PROJECT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FIGURES = ("reconstructions", "worst", "latent", "midpoints", "manifold", "traversals", "learning", "errors")

# The tests' own values, so that their results do not depend on the committed params.yaml.
SMALL_PARAMS = """
data: {dataset: digits, train_ratio: 0.8, split_seed: 0}
model: {bottleneck_size: 2, n_layers: 2, hidden_sizes: null, regularizer: batch_norm, dropout_p: 0.3}
train:
  {seed: 0, n_epochs: 2, batch_size: 64, lr: 0.005, schedule: one_cycle, weight_decay: 0.1, adam_beta2: 0.95,
  precision: float32, device: cpu, threads: 2}
evaluate: {manifold_size: 5, midpoint_pairs: 6}
"""


def small_params(**changes: Any) -> Params:
    """Return valid parameters of a network that trains in a second; `model__n_layers=3` changes one."""
    values = yaml.safe_load(SMALL_PARAMS)
    for name, value in changes.items():
        section, key = name.split("__")
        values[section][key] = value
    return Params.model_validate(values)


class Calls(Callback):
    """A callback of the training loop made of functions: `Calls(on_epoch=…)`."""

    def __init__(self, **functions: Callable[..., object]):
        vars(self).update(functions)


def random_split(n: int, seed: int = 0) -> Split:
    """Return n noise images. Every digit occurs if n is at least 10."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
    return Split(images, (np.arange(n) % 10).astype(np.uint8))


def write_params(params: Params, folder: Path = Path()) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params.model_dump(), sort_keys=False))


def set_params(folder: Path, **changes: Any) -> None:
    """Change values in a folder's params.yaml: `train__seed=1` sets `seed` in the section `train`."""
    path = folder / "params.yaml"
    values = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        section, key = name.split("__")
        assert key in values[section]
        values[section][key] = value
    path.write_text(yaml.safe_dump(values, sort_keys=False))


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """Change one file inside the block and restore it afterwards."""
    text = path.read_text()
    assert old in text, f"{path} does not hold {old!r}"
    path.write_text(text.replace(old, new))
    try:
        yield
    finally:
        path.write_text(text)


def save_every_epoch(folder: Path) -> None:
    """Make a copy of the project save a checkpoint after every epoch instead of every few seconds."""
    module = folder / "pipeline/core/checkpoint.py"
    text = module.read_text()
    assert "SECONDS_BETWEEN = 10.0" in text
    module.write_text(text.replace("SECONDS_BETWEEN = 10.0", "SECONDS_BETWEEN = 0.0"))


def copy_project(target: Path) -> Path:
    """Copy the working tree's files into a new git repository with one commit."""
    return repository({name: PROJECT / name for name in listed(".")}, target)


def copy_toy(target: Path) -> Path:
    """Make a git repository with one commit: this project's machinery, and tests/toy as its experiment."""
    machinery = runpy.run_path(str(PROJECT / "examples/new_project.py"))["MACHINERY"]
    files = {name: PROJECT / name for name in listed(*machinery)}
    files |= {name.removeprefix("tests/toy/"): PROJECT / name for name in listed("tests/toy")}
    return repository(files, target)


def listed(*paths: str) -> list[str]:
    """Return the working tree's files under these paths, without those that git ignores."""
    if PROJECT.name == "mutants":
        pytest.skip("mutmut's copy of the project is not in git")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *paths]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, check=True, text=True).stdout.split("\0")
    return [name for name in found if (PROJECT / name).is_file()]


def repository(files: dict[str, Path], target: Path) -> Path:
    """Copy files, {name: path}, into a new git repository with one commit."""
    for name, path in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target / name)
    git(target, "init", "-q", "-b", "main")
    git(target, "add", "-A")
    git(target, "commit", "-q", "-m", "copy")
    return target


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment with its Python first in PATH and without tracking or DVC settings."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_", "MNIST_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    identity = {"GIT_AUTHOR_NAME": "Test", "GIT_AUTHOR_EMAIL": "test@example.com"}
    identity |= {"GIT_COMMITTER_NAME": "Test", "GIT_COMMITTER_EMAIL": "test@example.com"}
    settings = {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    if os.environ.get("MUTANT_UNDER_TEST") == "stats":  # mutmut counts calls only in its own process
        settings["MUTANT_UNDER_TEST"] = ""
    return inherited | identity | settings | changes


def environment_with_make(folder: Path) -> dict[str, str]:
    """Return `environment` with a `make` that installs nothing: its `.venv` is the environment of these tests."""
    tools = folder / "tools"
    tools.mkdir(parents=True)
    ready = " ".join(f"-o .venv/installed{kind}" for kind in ("", "-dev", "-cluster"))
    link = f'[ -e .venv ] || ln -s "{sys.prefix}" .venv'
    (tools / "make").write_text(f'#!/bin/sh\n{link}\nexec {shutil.which("make")} {ready} "$@"\n')
    (tools / "make").chmod(0o755)
    return environment(PATH=f"{tools}{os.pathsep}{environment()['PATH']}")


def run(folder: Path, *command: str, ok: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m …` in a folder. With `ok`, a failure fails the test and shows the output."""
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


def start(folder: Path, *command: str, **changes: str) -> subprocess.Popen[str]:
    """Start `python -m …` in a folder, in its own session, so that a signal to its group reaches only it."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def rows(project: Path) -> list[Run]:
    """Return all runs of a project's own store, newest first."""
    with FileLock(project / "mlflow.db.lock"):  # two processes that create a store at the same time corrupt it
        return stored(f"sqlite:///{project}/mlflow.db")


def stored(uri: str) -> list[Run]:
    """Return all runs of a store, newest first."""
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["start_time DESC"]))


def artifacts(client: MlflowClient, run_id: str, folder: str | None = None) -> set[str]:
    """Return the paths of a run's artifacts."""
    found = set()
    for item in client.list_artifacts(run_id, folder):
        found |= artifacts(client, run_id, item.path) if item.is_dir else {item.path}
    return found


def write_results(folder: Path, params: Params) -> None:
    """Write the files of a pipeline run to a repository. The small model is real, the rest is made up."""
    (folder / ".dvc").mkdir(parents=True, exist_ok=True)
    for name in ("dvc.yaml", "metrics.yaml"):
        shutil.copy(PROJECT / name, folder)
    write_params(params, folder)
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    for stage in ("train", "evaluate"):
        for kind in ("outs", "metrics", "plots"):
            for item in stages[stage].get(kind, []):
                path = folder / (item if isinstance(item, str) else next(iter(item)))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"content")
    save_model(AutoEncoder(Architecture.from_params(params.model)), folder / train.MODEL_PATH)
    (folder / train.METRICS_PATH).write_text('{"valid": {"best_mse": 0.05}}')
    (folder / train.HISTORY_PATH).write_text("epoch,train_mse,valid_mse\n1,0.07,0.06\n2,0.06,0.05\n")
    (folder / "reports/evaluate.json").write_text('{"dataset": "digits", "test": {"mse": 0.04}}')


def files_with(text: str, *folders: Path) -> list[Path]:
    """Return the files under the folders that contain a text."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with suppress(FileNotFoundError):  # deleted or renamed a moment ago
            if text.encode() in path.read_bytes():
                found.append(path)
    return found


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount something at `folder` inside the block. Skips the test if this user may not mount."""
    if subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode != 0:
        pytest.skip("this user may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def working_in(folder: Path, module: str) -> list[psutil.Process]:
    """Return the processes that run a module of the pipeline in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        in_folder = process.info["cwd"] is not None and Path(process.info["cwd"]).is_relative_to(folder)
        if in_folder and module in (process.info["cmdline"] or []) and process.info["status"] != "zombie":
            found.append(process)
    return found


def wait_until(condition: Callable[[], object], seconds: float = 180) -> None:
    """Return once the condition holds; fail if it does not in time.

    Checking takes a fifth of a processor. Slow checks take more, because what is waited for may be over in 20 s.
    """
    deadline = time.monotonic() + seconds
    while True:
        started = time.monotonic()
        if condition():
            return
        assert started < deadline, "the condition did not hold in time"
        time.sleep(min(max(0.05, 4 * (time.monotonic() - started)), 2))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
