"""What runs on a node of a Ray cluster: the stages of one point, in a clone of the repository.

A node gets the repository and the shared outs, those of the stages that no varied parameter reaches, from Ray's object
store once, into its own folder, where each point has a clone. If a point comes back to the node after a kill, stages
that are done are not run again, and a stopped training resumes from its checkpoint. A finished point's clone is
deleted.
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

from pipeline.core.dvc_cli import environment_of_stages
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_out
from pipeline.core.git import check_out_workspace, git
from pipeline.sweep.progress import PointResult
from pipeline.tracking.journal import journals

# How long the last of a point's rows may take to reach MLflow, after which `make sync` tries once more.
DELIVERY_SECONDS = 60.0
LONGEST_LOG = 100_000


@dataclass(frozen=True)
class Shared:
    """What all points of a sweep have in common: a git bundle of the repository, and {path: content} of shared outs."""

    bundle: bytes
    outs: dict[str, bytes]


@dataclass(frozen=True)
class Order:
    """One point: its parameters, the commands of its stages by name, and environment variables for them."""

    sweep: str
    experiment: str
    params: dict[str, Any]
    commands: dict[str, str]
    environment: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a point ended: its numbers, None if it failed; and what its stages printed."""

    result: PointResult | None
    log: str


def node_folder(sweep: str) -> Path:
    """Where a node keeps a sweep's files.

    Raises:
        PipelineError: another user made that folder, and could change what is run there.
    """
    own = _own_folder()
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or own.stat().st_uid != os.getuid():
        raise PipelineError(f"{own} is another user's; delete it")
    return own / sweep


def _own_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"ray-sweep-{getpass.getuser()}"


def log_path(sweep: str, experiment: str) -> Path:
    """Where the stages of a point print while they run, on its node."""
    return _own_folder() / sweep / f"{experiment}.log"


def run_point(order: Order, shared: list[Any]) -> Outcome:
    """Run a point's stages that are not done yet, and wait until MLflow has its row.

    Args:
        order: the point.
        shared: Ray's reference to a `Shared`, in a list, for which Ray does not fetch it before it is wanted.
    """
    folder = node_folder(order.sweep)
    folder.mkdir(exist_ok=True)
    clone = folder / order.experiment
    log_file = log_path(order.sweep, order.experiment)
    # The stages of an earlier try may still be ending.
    with FileLock(folder / f"{order.experiment}.lock"):
        if not (clone / "ready").exists():
            make_clone(clone, prepare_node(folder, shared), order.params)
        with log_file.open("ab") as log:
            ok = all(run_stage(name, clone, order, log) for name in order.commands) and is_delivered(clone, order, log)
        text = log_file.read_bytes()[-LONGEST_LOG:].decode(errors="replace")
        if not ok:
            return Outcome(None, text)
        result = PointResult.read(lambda path: (clone / path).read_text())
        shutil.rmtree(clone)
        log_file.unlink()
    return Outcome(result, text)


def prepare_node(folder: Path, shared: list[Any]) -> Path:
    """The node's copy of the repository with the shared outs, made by the first point that comes here."""
    import ray

    base = folder / "base"
    with FileLock(folder / "base.lock"):
        if (base / "ready").exists():
            return base
        content: Shared = ray.get(shared[0])
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
    """A folder for a point: the repository as the sweep's workspace was, the shared outs, the point's parameters."""
    shutil.rmtree(clone, ignore_errors=True)
    git(base, "clone", "--quiet", "--shared", "--no-checkout", str(base), str(clone))
    git(clone, "fetch", "--quiet", "origin", "refs/sweep/*:refs/sweep/*")
    check_out_workspace(clone, "refs/sweep/head", "refs/sweep/workspace")
    for out in filter(Path.is_file, (base / "outs").rglob("*")):
        target = clone / out.relative_to(base / "outs")
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(out)  # no stage of a point writes these
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (clone / "ready").touch()


def run_stage(name: str, clone: Path, order: Order, log: Any) -> bool:
    """Run a stage unless it is done; whether it is now."""
    done = clone / f"{name}.done"
    if done.exists():
        return True
    command = shlex.split(order.commands[name])
    if shutil.which("setpriv"):
        # The stages end with this process, however it ends, and close their row.
        command = ["setpriv", "--pdeathsig", "TERM", *command]
    status = subprocess.run(
        command,
        cwd=clone,
        env=stage_environment(order),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    ).returncode
    if status == 0:
        done.touch()
    return status == 0


def stage_environment(order: Order) -> dict[str, str]:
    """The environment in which a stage runs as DVC would run it: the sweep's settings, and none of Ray's own.

    Ray sets the number of OpenMP's threads, which is `train.threads`' to say.
    """
    inherited = environment_of_stages()
    for name in ("OMP_NUM_THREADS", "PYTHONPATH", "RAY_AUTH_TOKEN"):
        inherited.pop(name, None)
    return inherited | order.environment


def is_delivered(clone: Path, order: Order, log: Any) -> bool:
    """Wait for the stages' own deliveries to MLflow; if they gave up or take too long, try once more."""
    deadline = time.monotonic() + DELIVERY_SECONDS
    while waiting := journals(clone):
        if time.monotonic() > deadline or any(journal.problem() for journal in waiting):
            command = [sys.executable, "-m", "pipeline.tracking.sync"]
            environment = stage_environment(order)
            subprocess.run(command, cwd=clone, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            return not journals(clone)
        time.sleep(0.1)
    return True


def remove(sweep: str) -> None:
    """Delete what a node keeps of a sweep."""
    shutil.rmtree(node_folder(sweep), ignore_errors=True)
