"""`make sweep ENGINE=ray ADDRESS=…` on two nodes with separate folders and a team's server, with the loss of a node."""

import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import (
    PROJECT,
    environment,
    files_with,
    git,
    run,
    set_params,
    start,
    stored,
    wait_until,
)
from tests.team_server import TeamServer, server_folder

pytest.importorskip("ray", reason="Ray is not installed: make setup-cluster")

# Random, because the tests' source files are copied to the nodes.
IN_ADDRESS, IN_ENVIRONMENT, TOKEN = (secrets.token_hex(20) for _ in range(3))


class RayCluster:
    """The process `python -m tests.ray_cluster`: a cluster that requires a token."""

    def __init__(self, folder: Path):
        # For the nodes and the driver: on loopback, and with a token.
        self.settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_TOKEN": TOKEN}
        with (folder / "cluster.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.ray_cluster", str(folder)],
                cwd=PROJECT,
                env=environment(**self.settings, RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.address = self._answer()
        assert self.address, (folder / "cluster.log").read_text()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def add(self, name: str) -> None:
        self._say(f"add {name}")
        assert self._answer() == "added"

    def kill(self, name: str) -> None:
        self._say(f"kill {name}")

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@contextmanager
def ray_cluster(folder: Path) -> Iterator[RayCluster]:
    cluster = RayCluster(folder)
    try:
        yield cluster
    finally:
        cluster.stop()


def names(server: TeamServer, status: str) -> Counter[str]:
    """Count the runs with that status by name."""
    return Counter(row.info.run_name for row in stored(server.address) if row.info.status == status)


@pytest.mark.slow
def test_every_trial_survives_a_lost_node(toy_workspace: Path) -> None:
    """If a node is killed in mid-sweep, its trial runs again on the other one, and each trial has one FINISHED run.

    Finished trials are not run again. A trial that is too large for every node fails with one line. Passwords in the
    store's address and in the environment, and Ray's token, are in no table, artifact, log (including Ray's own),
    journal or file of a node.
    """
    set_params(toy_workspace, train__n_epochs=100, train__pause=0.5)
    git(toy_workspace, "commit", "-q", "-a", "-m", "longer")
    sweep = ("pipeline.sweep", "--engine", "ray", "-S", "train.seed=0,1")
    trials = {f"degree=2 seed={seed}": 1 for seed in range(2)}
    with server_folder() as folder:
        server = TeamServer(toy_workspace, folder)
        server.start()
        try:
            with ray_cluster(folder) as cluster:
                cluster.add("first")
                cluster.add("second")
                settings: dict[str, Any] = {
                    "MLFLOW_TRACKING_URI": server.address.replace("//", f"//bob:{IN_ADDRESS}@"),
                    "DEPLOY_TOKEN": IN_ENVIRONMENT,
                    **cluster.settings,
                }
                driver = start(toy_workspace, *sweep, "--address", cluster.address, **settings)
                wait_until(lambda: driver.poll() is not None or names(server, "RUNNING").total() == 2, 180)
                cluster.kill("first")
                out, err = driver.communicate(timeout=900)
                assert driver.returncode == 0, out + err
                assert "its worker was lost, trying again" in out
                assert "2 of 2 done" in out
                assert names(server, "FINISHED") == trials
                assert names(server, "KILLED").total() == len(stored(server.address)) - 2 == 1
                again = run(toy_workspace, *sweep, "--address", cluster.address, **settings)
                assert "2 trials, 2 done, 0 to run" in again.stdout
                assert list((folder / "first").glob("ray-sweep-*/*"))
                assert not list((folder / "second").glob("ray-sweep-*/*"))
                too_large = (*sweep, "-S", "train.threads=64", "--address", cluster.address)
                large = run(toy_workspace, *too_large, ok=False, **settings)
                assert large.returncode == 2
                assert "a trial needs 64 CPUs (train.threads), but the cluster's largest node has" in large.stderr
            dump = server.dump()
        finally:
            server.stop()
        assert list((folder / "ray").glob("session_*/logs/raylet.out"))
        for secret in (IN_ADDRESS, IN_ENVIRONMENT, TOKEN):
            assert secret not in dump + out + err + again.stdout + again.stderr
            assert files_with(secret, folder, toy_workspace) == []


@pytest.mark.slow
def test_missing_cluster_fails_with_one_line(toy_workspace: Path) -> None:
    """A missing cluster is reported within two minutes, although Ray itself tries for more than ten."""
    code = (
        "from pipeline.sweep import ray_engine\nfrom pipeline.core.errors import run_command\n"
        "def main():\n    with ray_engine.cluster('127.0.0.1:9', 1):\n        pass\n"
        "run_command(main)\n"
    )
    (toy_workspace / "connecting.py").write_text(code)
    started = time.monotonic()
    done = run(toy_workspace, "connecting", ok=False, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
    assert done.returncode == 2
    assert "error: no Ray cluster at 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 120
