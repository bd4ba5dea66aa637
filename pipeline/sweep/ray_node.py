"""The code that runs on a node of a Ray cluster: the stages of one trial, in a clone of the repository.

A node fetches the repository and the shared outputs once from Ray's object store into its own folder. Shared outputs
are those of stages that depend on no varied parameter. Each trial has a clone in that folder. If a killed trial comes
back to the node, its finished stages are not run again, and a stopped training resumes from its checkpoint. The clone
of a finished trial is deleted.
"""

import getpass
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from pipeline.core.dvc_cli import stage_environment
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_out
from pipeline.core.git import check_out_workspace, git
from pipeline.sweep.progress import TrialResult
from pipeline.tracking.journal import journals

# How long the stages' own deliveries to MLflow may take; after that `pipeline.tracking.sync` tries once more.
DELIVERY_SECONDS = 60.0
LONGEST_LOG = 100_000


@dataclass(frozen=True)
class SweepPayload:
    """Data that all trials share: a git bundle of the repository, and {path: content} of the shared outputs."""

    bundle: bytes
    outs: dict[str, bytes]


@dataclass(frozen=True)
class TrialSpec:
    """One trial: its parameters, its stages' commands by name, and the environment variables for them."""

    sweep: str
    experiment: str
    params: dict[str, Any]
    commands: dict[str, str]
    environment: dict[str, str]


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended: its numbers, or None if it failed, and what its stages printed."""

    result: TrialResult | None
    log: str


def node_folder(sweep: str) -> Path:
    """Return the folder of a sweep's files on a node.

    Raises:
        PipelineError: the parent folder belongs to another user, who could change the code that runs there.
    """
    own = _own_folder()
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or own.stat().st_uid != os.getuid():
        raise PipelineError(f"{own} belongs to another user; delete it")
    return own / sweep


def _own_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"ray-sweep-{getpass.getuser()}"


def log_path(sweep: str, experiment: str) -> Path:
    """Return the log, on the trial's node, that its running stages print to."""
    return _own_folder() / sweep / f"{experiment}.log"


def run_trial(spec: TrialSpec, shared: list[Any]) -> TrialOutcome:
    """Run a trial's unfinished stages, and wait until MLflow has its run.

    Args:
        spec: the trial.
        shared: Ray's reference to a `SweepPayload`. It is in a list so that Ray does not fetch it before it is needed.
    """
    folder = node_folder(spec.sweep)
    folder.mkdir(exist_ok=True)
    clone = folder / spec.experiment
    log_file = log_path(spec.sweep, spec.experiment)
    # The stages of an earlier attempt may still be stopping.
    with FileLock(folder / f"{spec.experiment}.lock"):
        if not (clone / "ready").exists():
            make_clone(clone, prepare_node(folder, shared), spec.params)
        with log_file.open("ab") as log:
            ok = all(run_stage(name, clone, spec, log) for name in spec.commands) and is_delivered(clone, spec, log)
        text = log_file.read_bytes()[-LONGEST_LOG:].decode(errors="replace")
        if not ok:
            return TrialOutcome(None, text)
        result = TrialResult.read(lambda path: (clone / path).read_text())
        shutil.rmtree(clone)
        log_file.unlink()
    return TrialOutcome(result, text)


def prepare_node(folder: Path, shared: list[Any]) -> Path:
    """Return the node's copy of the repository and the shared outputs; the first trial on the node makes it."""
    import ray

    base = folder / "base"
    with FileLock(folder / "base.lock"):
        if (base / "ready").exists():
            return base
        content: SweepPayload = ray.get(shared[0])
        shutil.rmtree(base, ignore_errors=True)
        git(folder, "init", "--quiet", str(base))
        bundle = folder / "bundle"
        bundle.write_bytes(content.bundle)
        git(base, "fetch", "--quiet", str(bundle), "refs/sweep/*:refs/sweep/*")
        bundle.unlink()
        for path, data in content.outs.items():
            write_out(base / "outs" / path, data)
        (base / "ready").touch()
    return base


def make_clone(clone: Path, base: Path, params: dict[str, Any]) -> None:
    """Make a trial's folder: the sweep's workspace, the shared outputs and the trial's parameters."""
    shutil.rmtree(clone, ignore_errors=True)
    git(base, "clone", "--quiet", "--shared", "--no-checkout", str(base), str(clone))
    git(clone, "fetch", "--quiet", "origin", "refs/sweep/*:refs/sweep/*")
    check_out_workspace(clone, "refs/sweep/head", "refs/sweep/workspace")
    for out in filter(Path.is_file, (base / "outs").rglob("*")):
        target = clone / out.relative_to(base / "outs")
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(out)  # no stage of a trial writes to these
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (clone / "ready").touch()


def run_stage(name: str, clone: Path, spec: TrialSpec, log: Any) -> bool:
    """Run a stage unless it is done; return whether it succeeded."""
    done = clone / f"{name}.done"
    if done.exists():
        return True
    command = shlex.split(spec.commands[name])
    if shutil.which("setpriv"):
        # However this process ends, the stage gets SIGTERM and closes its MLflow run.
        command = ["setpriv", "--pdeathsig", "TERM", *command]
    status = subprocess.run(
        command,
        cwd=clone,
        env=trial_environment(spec),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    ).returncode
    if status == 0:
        done.touch()
    return status == 0


def trial_environment(spec: TrialSpec) -> dict[str, str]:
    """Return the environment that a stage would have under DVC: the sweep's settings, without Ray's own variables.

    Ray sets OMP_NUM_THREADS, but `train.threads` decides the number of threads.
    """
    inherited = stage_environment()
    for name in ("OMP_NUM_THREADS", "PYTHONPATH", "RAY_AUTH_TOKEN"):
        inherited.pop(name, None)
    return inherited | spec.environment


def is_delivered(clone: Path, spec: TrialSpec, log: Any) -> bool:
    """Wait for the stages' own deliveries to MLflow; if they gave up or take too long, try once more.

    Returns:
        Whether everything was delivered.
    """
    deadline = time.monotonic() + DELIVERY_SECONDS
    while waiting := journals(clone):
        if time.monotonic() > deadline or any(journal.problem() for journal in waiting):
            command = [sys.executable, "-m", "pipeline.tracking.sync"]
            environment = trial_environment(spec)
            subprocess.run(command, cwd=clone, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            return not journals(clone)
        time.sleep(0.1)
    return True


def remove(sweep: str) -> None:
    """Delete a sweep's files on a node."""
    shutil.rmtree(node_folder(sweep), ignore_errors=True)
