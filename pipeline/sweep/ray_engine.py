"""Run a sweep's trials on Ray: on this machine, or on a cluster whose nodes have the same environment.

Each trial is a Ray task that runs the stages' own commands on its node (`pipeline.sweep.ray_node`). MLflow's store
records which trials are done. Ray never retries a task: if a worker or a node is lost, the driver checks the store and
submits the trial again.
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
from pipeline.sweep.grid import Trial, changed_names, shared_stages
from pipeline.sweep.progress import Running, SweepProgress, TrialResult
from pipeline.sweep.ray_node import SweepPayload, TrialOutcome, TrialSpec
from pipeline.tracking import store
from pipeline.tracking.tags import EVALUATION_TAG, TRIAL_TAG, TRIAL_VARIABLE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# A trial that loses its worker this many times counts as failed.
MAX_ATTEMPTS = 3
# Prefixes of the variables that configure a stage; Ray's tasks get them from the driver, not from their node.
SETTINGS = ("MLFLOW_", "PIPELINE_", "GOMP_", "MKL_", "ONEDNN_", "DNNL_", "OPENBLAS_", "CUBLAS_", "NVIDIA_TF32_")


def check(trials: list[Trial], address: str | None) -> None:
    """Check that these trials can run on Ray.

    Raises:
        PipelineError: they cannot; the message says what to do.
    """
    if find_spec("ray") is None:
        raise PipelineError("Ray is not installed: make setup-cluster")
    if not store.is_on():
        raise PipelineError("a sweep on Ray reads from the MLflow store what is done: unset PIPELINE_TRACKING")
    if not shared_stages(trials):
        varied = sorted(changed_names(trials))
        causes = [name for name in varied if not dvcfiles.stages_without([name])] or varied
        raise PipelineError(
            f"trials on Ray share the prepared data, so a grid cannot vary {', '.join(causes)}: leave out --engine ray"
        )
    gpus_per_trial()
    if git(main_root(), "rev-parse", "--is-shallow-repository") == "true":
        raise PipelineError("a shallow clone cannot be sent to Ray's nodes: git fetch --unshallow")
    if address and not store.is_server(store.tracking_uri(main_root())):
        raise PipelineError(
            "other machines cannot reach the store in this repository: set MLFLOW_TRACKING_URI to a tracking server "
            "(docs/server.md)"
        )


def is_done(row: "Run") -> bool:
    """Whether an MLflow run is finished and evaluated."""
    return row.info.status == "FINISHED" and EVALUATION_TAG in row.data.tags


def finished(client: "MlflowClient", experiment_id: str, trials: list[Trial]) -> "dict[str, Run]":
    """Return {experiment: its oldest MLflow run} of the finished trials, whoever ran them.

    A run counts if it has the same parameters and code.
    """
    experiments = {_key(trial.params.flat()): trial.experiment for trial in trials}
    training, evaluation = trials[0].codes
    same_code = f"tags.code = '{training}' AND tags.`evaluation.code` = '{evaluation}'"
    condition = f"{same_code} AND attributes.status = 'FINISHED'"
    rows = {}
    for row in store.search_all(client, experiment_id, condition):
        experiment = experiments.get(_key(row.data.params))
        if experiment is not None and is_done(row):
            rows[experiment] = row
    return rows


def _key(params: Mapping[str, object]) -> frozenset[tuple[str, str]]:
    """Return a hashable key of parameters as MLflow stores them."""
    return frozenset((name, str(value)) for name, value in params.items())


def keep_one_finished_run(client: "MlflowClient", experiment_id: str, trials: list[Trial]) -> None:
    """Leave one FINISHED MLflow run for each trial that this clone ran on Ray; mark what a lost worker left as KILLED.

    Call only while none of these trials is running.
    """
    rows: dict[str, list[Run]] = {trial_tag(trial): [] for trial in trials}
    for row in store.search_all(client, experiment_id, f"tags.`{TRIAL_TAG}` LIKE '{_owner()}-%'"):
        if (tag := row.data.tags[TRIAL_TAG]) in rows:
            rows[tag].append(row)
    for found in rows.values():
        done = [row for row in found if is_done(row)]
        for row in found:
            if row in done[-1:] or row.info.status not in ("RUNNING", "FINISHED"):
                continue
            # A late delivery may have ended the run since the search.
            if row.info.status == client.get_run(row.info.run_id).info.status:
                client.set_terminated(row.info.run_id, "KILLED")


def trial_tag(trial: Trial) -> str:
    """Return the tag that names a run's trial and the clone of the repository that ran it."""
    return f"{_owner()}-{trial.digest}"


def _owner() -> str:
    """Return an id of this clone of the repository."""
    return hashlib.sha256(f"{socket.gethostname()}:{main_root()}".encode()).hexdigest()[:16]


@contextmanager
def cluster(address: str | None, cpus: int) -> Iterator[Any]:
    """Connect Ray to the cluster at `address`; without one start Ray on this machine with `cpus` CPUs.

    Ray on this machine listens only on loopback and requires a token.

    Raises:
        PipelineError: there is no cluster at the address, or Ray cannot be started.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray reads these when it is imported.
    if address is None:
        # Despite its name it restricts Ray to loopback; otherwise Ray listens on the machine's outer address.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Every user of this machine can reach loopback; whoever has the token can run code as this user.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    else:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # by default Ray tries an address for ten minutes
        if has_token():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # `ray start` does the same
    import ray

    # Not in TMPDIR: with a longer path the names of Ray's sockets exceed the system's limit of about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as private:
        # Ray's folder holds the code that its workers run, and Ray makes it writable by all users.
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
    """Check that some node has the CPUs that a trial needs; Ray itself would wait silently.

    Raises:
        PipelineError: no node has that many.
    """
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if largest < cpus:
        raise PipelineError(
            f"a trial needs {cpus} CPUs (train.threads), but the cluster's largest node has {largest:.0f}: "
            f"-S train.threads={max(1, int(largest))}"
        )


def has_token() -> bool:
    """Whether Ray would find a token, which a cluster started by `ray start` requires."""
    variables = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return any(map(os.environ.get, variables)) or Path("~/.ray/auth_token").expanduser().is_file()


def run_trials(
    client: "MlflowClient",
    experiment_id: str,
    trials: list[Trial],
    snapshot: Path,
    jobs: int | None,
    address: str | None,
    n_trials: int,
) -> list[Trial]:
    """Run trials, as many at once as the cluster's CPUs and GPUs allow and at most `jobs`; return those that failed."""
    needs = max(trial.n_threads for trial in trials)
    own_cpus = needs * jobs if jobs else max(os.cpu_count() or 1, needs)
    failed: list[Trial] = []
    with cluster(address, own_cpus) as ray:
        check_size(ray, needs)
        with chdir(snapshot):
            stages = shared_stages(trials)
            content, sweep = shared_content(stages)
            commands = {name: command for name, command in dvcfiles.commands().items() if name not in stages}
        shared = ray.put(content)
        environment = settings_of_stages()
        gpus = int(ray.cluster_resources().get("GPU", 0))
        task = ray.remote(max_retries=0)(ray_node.run_trial)
        progress = SweepProgress(n_trials, jobs or 1, n_done=n_trials - len(trials))
        waiting, tries = deque(trials), Counter[str]()
        running: dict[Any, tuple[Trial, float]] = {}

        def submit(trial: Trial) -> None:
            spec = TrialSpec(
                sweep,
                trial.experiment,
                trial.params.model_dump(),
                commands,
                environment | {"MLFLOW_RUN_NAME": trial.name, TRIAL_VARIABLE: trial_tag(trial)},
            )
            wants = {"num_cpus": trial.n_threads, "num_gpus": gpus_of(trial) if gpus else 0}
            running[task.options(name=trial.name, **wants).remote(spec, [shared])] = (trial, time.monotonic())
            tries[trial.experiment] += 1

        def still_running() -> list[Running]:
            """Return the trials that run: the first `progress.jobs` of those submitted to Ray."""
            first = list(running.values())[: progress.jobs]
            return [Running(p.name, ray_node.log_path(sweep, p.experiment), started) for p, started in first]

        try:
            while waiting or running:
                progress.jobs = jobs or max(1, int(ray.cluster_resources().get("CPU", 1)) // needs)
                # Submit two more than can run, so that no worker waits for the driver.
                while waiting and len(running) < (jobs or progress.jobs + 2):
                    submit(waiting.popleft())
                for done in ray.wait(list(running), timeout=1.0)[0]:
                    trial, started = running.pop(done)
                    outcome = outcome_of(ray, done, trial, client, experiment_id)
                    if outcome is None and tries[trial.experiment] < MAX_ATTEMPTS:
                        progress.say(f"{trial.name}: its worker was lost, trying again")
                        waiting.appendleft(trial)
                        continue
                    outcome = outcome or TrialOutcome(None, f"its worker was lost {MAX_ATTEMPTS} times\n")
                    if outcome.result is None:
                        failed.append(trial)
                    trial.log.write_text(outcome.log)
                    progress.on_end(trial.name, outcome.result, trial.log, time.monotonic() - started, still_running())
                progress.show(still_running())
            if not failed:
                remove_everywhere(ray, sweep)
        finally:
            if running:
                progress.on_interruption()
    return failed


def outcome_of(ray: Any, done: Any, trial: Trial, client: "MlflowClient", experiment_id: str) -> TrialOutcome | None:
    """Return how a task ended; None if its worker or node was lost before the store had the trial's run."""
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PipelineError | OSError):  # for example a full disk on its node
            return TrialOutcome(None, f"error: {error.cause}\n")
        raise  # a bug in this project
    except ray.exceptions.RayError as error:
        try:
            row = finished(client, experiment_id, [trial]).get(trial.experiment)
        except PipelineError:  # the store fails now; if it has a run, `keep_one_finished_run` keeps one of the two
            return None
        if row is None:
            return None
        numbers = TrialResult.of(row.data.metrics, load_metrics())
        return TrialOutcome(numbers, f"its worker was lost after its MLflow run had finished: {error}\n")


def shared_content(stages: list[str]) -> tuple[SweepPayload, str]:
    """Return what every node needs, and a name for it that depends only on its content. Call it in the snapshot.

    `stages` are the stages whose outputs all trials share.
    """
    snapshot, bundle = Path.cwd(), Path(".dvc/tmp/bundle")
    head, workspace = commit_workspace(snapshot)
    outs = {path: Path(path).read_bytes() for stage in stages for path in dvcfiles.declared(stage)["outs"]}
    refs = {"refs/sweep/head": head, "refs/sweep/workspace": workspace}
    for ref, commit in refs.items():
        git(snapshot, "update-ref", ref, commit)
    git(snapshot, "bundle", "create", "--quiet", str(bundle), *refs)
    content = SweepPayload(bundle.read_bytes(), outs)
    tree = git(snapshot, "rev-parse", f"{workspace}^{{tree}}")
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in outs.items()}
    name = hashlib.sha256(json.dumps([head, tree, hashes], sort_keys=True).encode()).hexdigest()[:16]
    return content, name


def settings_of_stages() -> dict[str, str]:
    """Return the environment variables that configure a stage, with the store's address made absolute."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
    return settings | {"MLFLOW_TRACKING_URI": store.tracking_uri(main_root())}


def gpus_of(trial: Trial) -> float:
    """Return the GPUs that a trial takes: `gpus_per_trial()`, or 0 if it trains on the CPU."""
    return 0 if trial.params.train.device == "cpu" else gpus_per_trial()


def gpus_per_trial() -> float:
    """Return the value of PIPELINE_GPUS_PER_TRIAL, by default 1.

    Raises:
        PipelineError: the value is not a number.
    """
    gpus = os.environ.get("PIPELINE_GPUS_PER_TRIAL", "1")
    if not re.fullmatch(r"\d+(\.\d+)?", gpus):
        raise PipelineError(
            f"PIPELINE_GPUS_PER_TRIAL must be a number of GPUs or a fraction of one, like 0.25; got {gpus!r}"
        )
    return float(gpus)


def remove_everywhere(ray: Any, sweep: str) -> None:
    """Delete a sweep's files on all nodes."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    task = ray.remote(max_retries=0, num_cpus=0)(ray_node.remove)
    there = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
    ray.wait([task.options(scheduling_strategy=on).remote(sweep) for on in there], num_returns=len(nodes), timeout=60)


def command_for(trial: Trial) -> str:
    """Return the command that runs a trial in the workspace."""
    return shlex.join(["dvc", "exp", "run", *trial.settings])


def best(trials: list[Trial], rows: "dict[str, Run]") -> Trial | None:
    """Return the finished trial with the best value of the metric with `role: select`; None if none is finished."""
    name, metric = with_role("select", load_metrics())
    done = [trial for trial in trials if trial.experiment in rows]

    def gain(trial: Trial) -> float:
        return metric.sign() * rows[trial.experiment].data.metrics[in_mlflow(name)]

    return max(done, key=gain, default=None)
