"""Run a sweep's points on Ray: on this machine, or on a cluster whose nodes have the same environment.

Each point is a Ray task that runs the stages' own commands on its node (`pipeline.sweep.ray_node`). MLflow's store says
which points are done. The driver alone tries again what was lost with a worker or a node, after a look at the store.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pipeline
from pipeline.core import dvcfiles
from pipeline.core.errors import PipelineError, on_one_line
from pipeline.core.git import commit_workspace, git
from pipeline.core.metrics import in_mlflow, load_metrics, with_role
from pipeline.core.repository import main_root
from pipeline.sweep import ray_node
from pipeline.sweep.grid import Point, changed_names, shared_stages
from pipeline.sweep.progress import PointResult, Running, SweepProgress
from pipeline.sweep.ray_node import Order, Outcome, Shared
from pipeline.tracking import store
from pipeline.tracking.tags import EVALUATION_TAG, POINT_TAG, POINT_VARIABLE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# After so many workers lost a point counts as failed.
TRIES = 3
# A stage's settings, which Ray's tasks get from the driver, not from their node.
SETTINGS = ("MLFLOW_", "PIPELINE_", "GOMP_", "MKL_", "ONEDNN_", "DNNL_", "OPENBLAS_", "CUBLAS_", "NVIDIA_TF32_")


def check(points: list[Point], address: str | None) -> None:
    """Whether these points can run on Ray.

    Raises:
        PipelineError: they cannot; says what to do.
    """
    if find_spec("ray") is None:
        raise PipelineError("Ray is not installed: make setup-cluster")
    if not store.is_on():
        raise PipelineError("on Ray the MLflow store says what is done, so PIPELINE_TRACKING=0 cannot be")
    if not shared_stages(points):
        varied = sorted(changed_names(points))
        causes = [name for name in varied if not dvcfiles.stages_without([name])] or varied
        raise PipelineError(
            f"points on Ray share the prepared data, so a grid cannot vary {', '.join(causes)}: without --engine ray"
        )
    gpus_per_point()
    if git(main_root(), "rev-parse", "--is-shallow-repository") == "true":
        raise PipelineError("a shallow clone cannot be sent to Ray's nodes: git fetch --unshallow")
    if address and not store.is_server(store.tracking_uri(main_root())):
        raise PipelineError(
            "other machines cannot reach the store in this repository: let MLFLOW_TRACKING_URI name a tracking "
            "server (docs/server.md)"
        )


def is_done(row: "Run") -> bool:
    """Whether a row is that of a whole run."""
    return row.info.status == "FINISHED" and EVALUATION_TAG in row.data.tags


def finished(client: "MlflowClient", experiment_id: str, points: list[Point]) -> "dict[str, Run]":
    """{experiment: its oldest row} of the points that are done: the same parameters and code, whoever ran them."""
    experiments = {_key(point.params.flat()): point.experiment for point in points}
    condition = f"tags.code = '{points[0].code}' AND attributes.status = 'FINISHED'"
    rows = {}
    for row in store.search_all(client, experiment_id, condition):
        experiment = experiments.get(_key(row.data.params))
        if experiment is not None and is_done(row):
            rows[experiment] = row
    return rows


def _key(params: Mapping[str, object]) -> frozenset[tuple[str, str]]:
    """Parameters as MLflow keeps them, to find them by."""
    return frozenset((name, str(value)) for name, value in params.items())


def settle(client: "MlflowClient", experiment_id: str, points: list[Point]) -> None:
    """Leave one FINISHED row for each point that this repository ran on Ray; what a lost worker left ends as KILLED.

    Called while none of them runs.
    """
    rows: dict[str, list[Run]] = {point_tag(point): [] for point in points}
    for row in store.search_all(client, experiment_id, f"tags.`{POINT_TAG}` LIKE '{_owner()}-%'"):
        if (tag := row.data.tags[POINT_TAG]) in rows:
            rows[tag].append(row)
    for found in rows.values():
        done = [row for row in found if is_done(row)]
        for row in found:
            if row in done[-1:] or row.info.status not in ("RUNNING", "FINISHED"):
                continue
            # A late delivery may have ended it since the search.
            if row.info.status == client.get_run(row.info.run_id).info.status:
                client.set_terminated(row.info.run_id, "KILLED")


def point_tag(point: Point) -> str:
    """What a row says of the point that it is of: which clone of the repository ran it, and which point."""
    return f"{_owner()}-{point.digest}"


def _owner() -> str:
    """This clone of the repository among all."""
    return hashlib.sha256(f"{socket.gethostname()}:{main_root()}".encode()).hexdigest()[:16]


@contextmanager
def cluster(address: str | None, cpus: int) -> Iterator[Any]:
    """Ray, connected to a cluster, or to its own on this machine, with so many CPUs, only on loopback and with a token.

    Raises:
        PipelineError: no cluster is at the address, or none can be started.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray reads these when it is imported.
    if address is None:
        # Its name for "not on other machines"; else it listens on the outer address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Loopback is open to every user of this machine; who has the token runs code as this one.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    else:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # else it tries an address for ten minutes
        if has_token():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does by itself
    import ray

    # Not in TMPDIR: with a longer path than this Ray's sockets pass the system's limit of some 100 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as private:
        # Ray lets all users write into its folder, where the code lies that its workers run.
        own = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": f"{private}/ray"}
        settings: dict[str, Any] = {"address": address} if address else own
        try:
            ray.init(
                **settings,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"py_modules": [str(Path(pipeline.__file__).parent)]},
            )
        except (OSError, ValueError, RuntimeError) as error:
            what = f"no Ray cluster at {address}" if address else "Ray does not start"
            raise PipelineError(f"{what}: {on_one_line(error)[:200]}") from None
        try:
            yield ray
        finally:
            ray.shutdown()


def check_size(ray: Any, cpus: int) -> None:
    """Whether some node has the CPUs that a point needs; Ray itself would wait for one without a word.

    Raises:
        PipelineError: none has.
    """
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if largest < cpus:
        raise PipelineError(
            f"a point needs {cpus} CPUs, as many as train.threads says, and the cluster's largest node has "
            f"{largest:.0f}: -S train.threads={max(1, int(largest))}"
        )


def has_token() -> bool:
    """Whether Ray would find the token that a cluster started by `ray start` asks for."""
    variables = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(map(os.environ.get, variables)) or Path("~/.ray/auth_token").expanduser().is_file()


def run_points(
    client: "MlflowClient",
    experiment_id: str,
    points: list[Point],
    snapshot: Path,
    jobs: int | None,
    address: str | None,
    n_points: int,
) -> list[Point]:
    """Run points, as many at once as the cluster has CPUs (and GPUs) for, at most `jobs`; those that failed."""
    needs = max(point.n_threads for point in points)
    own_cpus = needs * jobs if jobs else max(os.cpu_count() or 1, needs)
    failed: list[Point] = []
    with cluster(address, own_cpus) as ray:
        check_size(ray, needs)
        with chdir(snapshot):
            stages = shared_stages(points)
            content, sweep = shared_content(stages)
            commands = {name: command for name, command in dvcfiles.commands().items() if name not in stages}
        shared = ray.put(content)
        environment = settings_of_stages()
        gpus = int(ray.cluster_resources().get("GPU", 0))
        task = ray.remote(max_retries=0)(ray_node.run_point)
        progress = SweepProgress(n_points, jobs or 1, n_done=n_points - len(points))
        waiting, tries = deque(points), Counter[str]()
        running: dict[Any, tuple[Point, float]] = {}

        def submit(point: Point) -> None:
            order = Order(
                sweep,
                point.experiment,
                point.params.model_dump(),
                commands,
                environment | {"MLFLOW_RUN_NAME": point.name, POINT_VARIABLE: point_tag(point)},
            )
            wants = {"num_cpus": point.n_threads, "num_gpus": gpus_of(point) if gpus else 0}
            running[task.options(name=point.name, **wants).remote(order, [shared])] = (point, time.monotonic())
            tries[point.experiment] += 1

        def still_running() -> list[Running]:
            """Of all that Ray has, the first: those that run."""
            first = list(running.values())[: progress.jobs]
            return [Running(p.name, ray_node.log_path(sweep, p.experiment), started) for p, started in first]

        try:
            while waiting or running:
                progress.jobs = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)) // needs)
                # Two more than can run, so that no worker waits for the driver.
                while waiting and len(running) < (jobs or progress.jobs + 2):
                    submit(waiting.popleft())
                for done in ray.wait(list(running), timeout=1.0)[0]:
                    point, started = running.pop(done)
                    outcome = outcome_of(ray, done, point, client, experiment_id)
                    if outcome is None and tries[point.experiment] < TRIES:
                        progress.say(f"{point.name}: lost with its worker, tried again")
                        waiting.appendleft(point)
                        continue
                    outcome = outcome or Outcome(None, f"lost with its worker {TRIES} times\n")
                    if outcome.result is None:
                        failed.append(point)
                    point.log.write_text(outcome.log)
                    progress.on_end(point.name, outcome.result, point.log, time.monotonic() - started, still_running())
                progress.show(still_running())
            if not failed:
                remove_everywhere(ray, sweep)
        finally:
            if running:
                progress.on_interruption()
    return failed


def outcome_of(ray: Any, done: Any, point: Point, client: "MlflowClient", experiment_id: str) -> Outcome | None:
    """How a task ended; None if it was lost with its worker or node before the store had its row."""
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PipelineError | OSError):  # a full disk on its node, say
            return Outcome(None, f"error: {error.cause}\n")
        raise  # a bug of this project's
    except ray.exceptions.RayError as error:
        try:
            row = finished(client, experiment_id, [point]).get(point.experiment)
        except PipelineError:  # the store fails at this moment; should there be a row, `settle` leaves one of two
            return None
        if row is None:
            return None
        numbers = PointResult.of(row.data.metrics, load_metrics())
        return Outcome(numbers, f"its worker was lost after the row was finished: {error}\n")


def shared_content(stages: list[str]) -> tuple[Shared, str]:
    """What every node needs, and a name for it that is the same for the same content; called in the snapshot.

    `stages` are those whose outs all points share.
    """
    snapshot, bundle = Path.cwd(), Path(".dvc/tmp/bundle")
    head, workspace = commit_workspace(snapshot)
    outs = {path: Path(path).read_bytes() for stage in stages for path in dvcfiles.declared(stage)["outs"]}
    refs = {"refs/sweep/head": head, "refs/sweep/workspace": workspace}
    for ref, commit in refs.items():
        git(snapshot, "update-ref", ref, commit)
    git(snapshot, "bundle", "create", "--quiet", str(bundle), *refs)
    content = Shared(bundle.read_bytes(), outs)
    tree = git(snapshot, "rev-parse", f"{workspace}^{{tree}}")
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in outs.items()}
    name = hashlib.sha256(json.dumps([head, tree, hashes], sort_keys=True).encode()).hexdigest()[:16]
    return content, name


def settings_of_stages() -> dict[str, str]:
    """The environment variables that decide what a stage does, with the store's address made absolute."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    return settings | {"MLFLOW_TRACKING_URI": store.tracking_uri(main_root())}


def gpus_of(point: Point) -> float:
    """`gpus_per_point`, unless the point trains on the CPU."""
    return 0 if point.params.train.device == "cpu" else gpus_per_point()


def gpus_per_point() -> float:
    """One, or what PIPELINE_GPUS_PER_POINT says.

    Raises:
        PipelineError: that is no number.
    """
    gpus = os.environ.get("PIPELINE_GPUS_PER_POINT", "1")
    if not re.fullmatch(r"\d+(\.\d+)?", gpus):
        raise PipelineError(
            f"PIPELINE_GPUS_PER_POINT must be a number of GPUs or a share of one, as 0.25; got {gpus!r}"
        )
    return float(gpus)


def remove_everywhere(ray: Any, sweep: str) -> None:
    """Delete what the nodes keep of a sweep."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    task = ray.remote(max_retries=0, num_cpus=0)(ray_node.remove)
    there = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    ray.wait([task.options(scheduling_strategy=on).remote(sweep) for on in there], num_returns=len(nodes), timeout=60)


def command_for(point: Point) -> str:
    """The command that makes a point the workspace's experiment."""
    return shlex.join(["dvc", "exp", "run", *point.settings])


def best(points: list[Point], rows: "dict[str, Run]") -> Point | None:
    """The point that the metric with `role: select` chooses."""
    name, metric = with_role("select", load_metrics())
    done = [point for point in points if point.experiment in rows]

    def gain(point: Point) -> float:
        return metric.sign() * rows[point.experiment].data.metrics[in_mlflow(name)]

    return max(done, key=gain, default=None)
