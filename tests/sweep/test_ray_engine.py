"""`make sweep ENGINE=ray`: real sweeps on this machine."""

import getpass
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipeline.core.errors import PipelineError
from pipeline.sweep import ray_engine
from pipeline.sweep.grid import make_trials, parse_grid
from pipeline.tracking.fingerprints import evaluation_code, training_code
from pipeline.tracking.store import open_store
from pipeline.tracking.tags import SWEEP_TAG
from tests.helpers import (
    environment,
    files_with,
    git,
    rows,
    run,
    save_every_epoch,
    small_params,
    start,
    wait_until,
    write_params,
)

pytest.importorskip("ray", reason="Ray is not installed: make setup-cluster")


SWEEP = ("pipeline.sweep", "--engine", "ray", "--jobs", "1")


@pytest.fixture
def workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace that trains on one CPU thread, with its own store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_params(small_params(train__threads=1, train__device="cpu"), workspace)
    git(workspace, "commit", "-q", "-a", "-m", "one thread")
    return workspace


def workers_of(driver: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Return Ray's workers that run a trial of this driver: the parents of its stages."""
    return [
        process
        for process in psutil.Process(driver.pid).children(recursive=True)
        if any("pipeline.train" in command(child) for child in children(process))
    ]


def command(process: psutil.Process) -> str:
    """Return a process's command line; empty if it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children()
    return []


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Return the addresses and ports on which a process listens."""
    with suppress(psutil.Error):
        found = [it for it in process.net_connections("inet") if it.status == psutil.CONN_LISTEN]
        return {(it.laddr.ip.removeprefix("::ffff:"), it.laddr.port) for it in found}
    return set()


def statuses(workspace: Path) -> list[str]:
    return sorted(row.info.status for row in rows(workspace))


@pytest.mark.parametrize(
    ("grid", "address", "message"),
    [
        ("data.split_seed=0,1", None, "cannot vary data.split_seed"),
        ("train.seed=0", "127.0.0.1:6379", "set MLFLOW_TRACKING_URI to a tracking server"),
    ],
)
def test_what_cannot_run_on_ray_is_an_error(workspace: Path, grid: str, address: str | None, message: str) -> None:
    """A sweep that cannot run on Ray fails before Ray is started."""
    with pytest.raises(PipelineError, match=message):
        ray_engine.check(make_trials(parse_grid([grid])), address)


def test_a_share_of_a_gpu_is_a_number(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIPELINE_GPUS_PER_TRIAL must be a number; anything else raises an error that says so."""
    trials = make_trials(parse_grid(["train.seed=0"]))
    monkeypatch.setenv("PIPELINE_GPUS_PER_TRIAL", "0.25")
    ray_engine.check(trials, None)
    monkeypatch.setenv("PIPELINE_GPUS_PER_TRIAL", "half")
    with pytest.raises(PipelineError, match=r"PIPELINE_GPUS_PER_TRIAL must be a number of GPUs .* got 'half'"):
        ray_engine.check(trials, None)


@pytest.mark.parametrize(
    ("device", "share", "gpus"),
    [("cpu", None, 0), ("cuda", None, 1), ("auto", None, 1), ("cuda", "0.25", 0.25), ("cpu", "0.25", 0)],
)
def test_a_trial_takes_a_gpu_unless_it_trains_on_the_cpu(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, device: str, share: str | None, gpus: float
) -> None:
    """A trial takes one GPU, or the share in PIPELINE_GPUS_PER_TRIAL; on the CPU it takes none."""
    if share is not None:
        monkeypatch.setenv("PIPELINE_GPUS_PER_TRIAL", share)
    (trial,) = make_trials({"train.device": [device]})
    assert ray_engine.gpus_of(trial) == gpus


def test_a_shallow_clone_is_an_error(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shallow clone is refused, because its bundle would lack commits that git needs."""
    git(workspace, "commit", "-q", "--allow-empty", "-m", "second")
    git(tmp_path, "clone", "-q", "--depth", "1", workspace.as_uri(), "shallow")
    monkeypatch.chdir(tmp_path / "shallow")
    with pytest.raises(PipelineError, match="git fetch --unshallow"):
        ray_engine.check(make_trials(parse_grid(["train.seed=0"])), None)


def test_one_run_per_trial_stays_finished(workspace: Path) -> None:
    """Of a trial's runs by this clone on Ray, only the oldest complete one stays FINISHED; others are not touched."""
    (trial,) = make_trials(parse_grid(["train.seed=0"]))
    client, experiment_id = open_store()
    mine = {"sweep.trial": ray_engine.trial_tag(trial)}

    def add(status: str, **tags: str) -> str:
        codes = {"code": training_code(), "evaluation.code": evaluation_code()}
        run_id = client.create_run(experiment_id, tags=codes | tags).info.run_id
        for name, value in trial.params.flat().items():
            client.log_param(run_id, name, value)
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        return run_id

    lost, half = add("RUNNING", **mine), add("FINISHED", **mine)
    first, second = add("FINISHED", evaluation="x", **mine), add("FINISHED", evaluation="x", **mine)
    others = add("RUNNING"), add("FINISHED", evaluation="x"), add("RUNNING", **{"sweep.trial": "another-clone"})
    ray_engine.keep_one_finished_run(client, experiment_id, [trial])
    found = {run_id: client.get_run(run_id).info.status for run_id in (lost, half, first, second, *others)}
    assert list(found.values()) == ["KILLED", "KILLED", "FINISHED", "KILLED", "RUNNING", "FINISHED", "RUNNING"]
    assert ray_engine.finished(client, experiment_id, [trial])[trial.experiment].info.run_id == first
    for name in ("code", "evaluation.code"):
        other = client.get_run(first).data.tags[name]
        for run_id in (first, others[1]):
            client.set_tag(run_id, name, "other")
        assert ray_engine.finished(client, experiment_id, [trial]) == {}
        for run_id in (first, others[1]):
            client.set_tag(run_id, name, other)


@pytest.mark.slow
def test_a_trial_on_ray_equals_dvc_to_the_bit(toy_workspace: Path) -> None:
    """Ray and DVC write the same bytes; a failing trial does not stop the others; finished trials are not run again."""
    grid = ["-S", "train.seed=0,1 train.device=cpu,cuda:99"]
    done = run(toy_workspace, "pipeline.sweep", "--engine", "ray", *grid, ok=False)
    assert "4 trials, 0 done, 4 to run" in done.stdout
    assert done.returncode == 1
    failed = [line.strip() for line in done.stderr.partition("failed:\n")[2].splitlines()]
    assert {line.partition(": ")[0] for line in failed} == {f"degree=2 seed={seed} device=cuda:99" for seed in (0, 1)}
    assert "cuda:99 is not on this machine" in (toy_workspace / failed[0].partition(": ")[2]).read_text()
    assert "to bring it here: dvc exp run -S train.seed=" in done.stdout
    on_ray = {row.info.run_name: row for row in rows(toy_workspace)}
    assert {row.info.status for row in on_ray.values()} == {"FINISHED"}
    assert len(on_ray) == 2

    again = run(toy_workspace, "pipeline.sweep", "--engine", "ray", "-S", "train.seed=0,1", "--name", "again")
    assert "2 trials, 2 done, 0 to run" in again.stdout
    names = [row.data.tags[SWEEP_TAG] for row in rows(toy_workspace)]
    assert names == ["seed,device | again"] * 2

    run(toy_workspace, "dvc", "repro")
    by_dvc = rows(toy_workspace)[0]
    same = on_ray["degree=2 seed=0 device=cpu"]
    assert by_dvc.info.run_id != same.info.run_id
    for tag in ("fingerprint", "evaluation"):  # hashes of all files that train wrote, and that evaluate read and wrote
        assert by_dvc.data.tags[tag] == same.data.tags[tag]
    only_there = {name for name in same.data.tags if name not in by_dvc.data.tags}
    assert only_there <= {"sweep", "sweep.trial"}
    client = MlflowClient(f"sqlite:///{toy_workspace}/mlflow.db")
    paths = [{item.path for item in client.list_artifacts(row.info.run_id)} for row in (by_dvc, same)]
    assert paths[0] == paths[1]


@pytest.mark.slow
def test_a_node_that_cannot_store_files_fails_the_trial(toy_workspace: Path) -> None:
    """The trial fails with one line in its log, without a traceback, and the sweep exits with 1."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        Path(folder, f"ray-sweep-{getpass.getuser()}").symlink_to(toy_workspace)
        done = run(toy_workspace, *SWEEP, "-S", "train.seed=0", ok=False, TMPDIR=folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    log = Path(done.stderr.partition("failed:\n")[2].strip().partition(": ")[2])
    assert log.read_text().startswith("error: ")
    assert log.read_text().endswith("belongs to another user; delete it\n")


def test_a_long_tmpdir_leaves_room_for_rays_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets' paths stay within macOS's limit of 103 bytes, counted from /private/tmp, and their folder is private."""
    (long := tmp_path / ("long" * 25)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    seen: list[tuple[str, int]] = []

    def init(_temp_dir: str, **_: object) -> None:
        seen.append((_temp_dir, Path(_temp_dir).parent.stat().st_mode & 0o777))

    with without_starting(monkeypatch, init), ray_engine.cluster(None, 1):
        ((folder, mode),) = seen
    socket = f"/private{folder}/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
    assert len(socket) <= 103
    assert mode == 0o700


def test_a_ray_that_does_not_start_fails_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operating system error while Ray starts becomes a one-line error."""

    def init(**_: object) -> None:
        raise OSError("AF_UNIX path length\ncannot exceed 107 bytes")

    message = "^Ray does not start: AF_UNIX path length cannot exceed 107 bytes$"
    with (
        without_starting(monkeypatch, init),
        pytest.raises(PipelineError, match=message),
        ray_engine.cluster(None, 1),
    ):
        pass


@contextmanager
def without_starting(monkeypatch: pytest.MonkeyPatch, init: Callable[..., None]) -> Iterator[None]:
    """Replace `ray.init` inside the block, and restore the environment afterwards."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", os.environ.copy())
        patch.setattr("ray.init", init)
        yield


@pytest.mark.slow
def test_only_its_user_can_use_a_sweeps_own_ray(toy_workspace: Path) -> None:
    """A sweep's own Ray listens only on loopback, refuses clients without the token, and keeps its folder private.

    This holds for other users of the machine too. The token is on no command line and in no file.
    """
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        Path(folder).chmod(0o755)
        driver = start(toy_workspace, *SWEEP, "-S", "train.seed=0 train.n_epochs=600 train.pause=0.5", TMPDIR=folder)
        try:
            wait_until(lambda: workers_of(driver) and statuses(toy_workspace) == ["RUNNING"])
            family = psutil.Process(driver.pid).children(recursive=True)
            servers = set().union(*map(listening, [psutil.Process(driver.pid), *family]))
            ports = sorted(port for _, port in servers)
            with ThreadPoolExecutor(len(ports)) as pool:
                answers = dict(zip(ports, pool.map(without_token, ports), strict=True))
            (private,) = set(map(Path, re.findall(r"(/tmp/ray-\w+)/ray/session", " ".join(map(command, family)))))
            mode = private.stat().st_mode & 0o777
            (token,) = {process.environ().get("RAY_AUTH_TOKEN") for process in family if "raylet" in process.name()}
            assert token is not None
            found = [line for line in map(command, family) if token in line]
            found += map(str, files_with(token, private, Path(folder), toy_workspace))
            if os.getuid() == 0:
                (address,) = set(re.findall(r"--gcs-address=(\S+)", " ".join(map(command, family))))
                refused = as_nobody(f"import ray; ray.init('{address}')")
                assert "AuthenticationError" in refused
                assert subprocess.run(["ls", private], user="nobody", group="nogroup", extra_groups=[]).returncode != 0
        finally:
            driver.terminate()
            out, err = driver.communicate(timeout=180)
        assert not private.exists()
    assert {address for address, _ in servers} == {"127.0.0.1"}
    statuses_of = {method: {by_method.get(method) for by_method in answers.values()} for method in METHODS}
    for method, found_statuses in statuses_of.items():
        assert found_statuses & {"16", "401"}, (method, answers)
        assert not found_statuses & {"0", "200"}, (method, answers)
    assert mode == 0o700
    assert found == []
    assert token not in out + err
    assert "the same command resumes" in err
    assert "Traceback" not in out + err
    wait_until(lambda: statuses(toy_workspace) == ["KILLED"])


# One method of each kind of server: cluster, node, object store, worker, and runtime environments (HTTP).
METHODS = (
    "NodeInfoGcsService/GetClusterId",
    "NodeManagerService/RequestWorkerLease",
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
    "",
)


def without_token(port: int) -> dict[str, str]:
    """Return {method: status} for the methods that a server answers without a token; gRPC 16 and HTTP 401 refuse."""
    answers = {}
    for method in METHODS:
        grpc = ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-H", "te: trailers"]
        grpc += ["--data-binary", "@-"]
        url = f"http://127.0.0.1:{port}/ray.rpc.{method}"
        # An empty message.
        done = subprocess.run(
            ["curl", "-s", "-i", "-m", "15", *(grpc if method else []), url], input=b"\0" * 5, capture_output=True
        )
        status = re.search(rb"^grpc-status: (\d+)" if method else rb"^HTTP/1.1 (\d+)", done.stdout, re.MULTILINE)
        if status is not None and status[1] != b"12":  # not implemented
            answers[method] = status[1].decode()
    return answers


def as_nobody(code: str) -> str:
    """Run Python as another user and return its output; the user may read all files, because Python may be in /root."""
    capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    done = subprocess.run(
        ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *capability, sys.executable, "-c", code],
        cwd="/",
        env=environment(HOME="/", RAY_NUM_REDIS_GET_RETRIES="1", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_trial_survives_a_killed_worker_and_driver(toy_workspace: Path) -> None:
    """After SIGKILL to its worker and then to the driver a trial resumes to one FINISHED run with each epoch once."""
    save_every_epoch(toy_workspace)
    git(toy_workspace, "commit", "-q", "-a", "-m", "save every epoch")
    grid = ["-S", "train.seed=0 train.n_epochs=60 train.pause=0.5"]
    driver = start(toy_workspace, *SWEEP, *grid)
    wait_until(lambda: workers_of(driver) and statuses(toy_workspace) == ["RUNNING"])
    for worker in workers_of(driver):
        worker.send_signal(signal.SIGKILL)
    assert driver.stdout is not None
    assert any("its worker was lost, trying again" in line for line in driver.stdout)
    wait_until(lambda: workers_of(driver))
    family = psutil.Process(driver.pid).children(recursive=True)
    for process in [psutil.Process(driver.pid), *family]:
        if "pipeline.tracking.delivery" not in command(process):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
    driver.wait()
    again = run(toy_workspace, *SWEEP, *grid)
    assert "1 of 1 done" in again.stdout
    (log,) = (toy_workspace / ".dvc/tmp/sweep").glob("*.log")
    assert "resuming after epoch" in log.read_text()
    finished = [row for row in rows(toy_workspace) if row.info.status == "FINISHED"]
    assert len(finished) == 1
    assert set(statuses(toy_workspace)) <= {"FINISHED", "KILLED"}
    client = MlflowClient(f"sqlite:///{toy_workspace}/mlflow.db")
    steps = [point.step for point in client.get_metric_history(finished[0].info.run_id, "train/mse")]
    assert sorted(steps) == list(range(1, 61))
