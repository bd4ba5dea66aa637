"""Measure what a sweep's engines cost, and how fast the parts are that all trials of a large sweep share.

    python -m benchmarks.sweep        (needs `make setup-cluster`, PostgreSQL, and the prepared MNIST)

1. Trials per hour of MNIST, two epochs each, on Ray with 1, 2 and 4 workers, which divide the cores' threads.
2. Seconds for each further trial of scikit-learn's digits on one thread, one after another, and for a sweep's first
   trial: on Ray, as DVC experiments, and in one process that calls the stages' functions.
3. Runs per second that the tracking server on PostgreSQL accepts, each with the parameters, metrics, tags and artifacts
   of a trial. Tasks per second of Ray's scheduler. Seconds that its object store takes to put the shared data, and to
   fetch it on another node.

Works in copies, so the workspace and its store do not change. Writes reports/benchmarks/sweep.json.
"""

import itertools
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import machine, without_store, write_result
from benchmarks.copies import change_params, copy_workspace, newest_row, wait_for_background

WORKERS = (1, 2, 4)
TRIALS = 4  # for each number of workers
FEW, MANY = 1, 5
ROUNDS = 2
ROWS, CLIENTS = 40, 2
TASKS = 500
SEEDS = itertools.count()  # no trial is run twice
_connected: list[Any] = []  # in a client's process: the client, and what it sends
ONE_PROCESS = """
import sys, yaml
from pathlib import Path
from pipeline import evaluate, pca_probes, train
for seed in map(int, sys.argv[1:]):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train"]["seed"] = seed
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for stage in (pca_probes, train, evaluate):
        stage.main()
"""


def main() -> None:
    if not Path("data/prepared/train.safetensors").is_file():
        sys.exit("error: there is no data to train on; `make run` first")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL's own user must be able to pass through it
        copy = copy_workspace(folder / "copy")
        dvc(copy, "repro", "--quiet", "baselines")
        hourly = trials_per_hour(copy)
        server_rates = rows_per_second(folder, copy)

        change_params(copy, data={"dataset": "digits"}, model={"n_layers": 2}, train={"threads": 1, "n_epochs": 5})
        dvc(copy, "repro", "--quiet", "baselines")
        engines = {"ray": on_ray, "dvc": as_experiments, "one_process": in_one_process}
        seconds: dict[str, dict[int, list[float]]] = {name: {FEW: [], MANY: []} for name in engines}
        for _ in range(ROUNDS):
            for n in (FEW, MANY):
                for engine, run_trials in engines.items():
                    seconds[engine][n].append(run_trials(copy, n))
        result = {
            "machine": machine(),
            "trials_per_hour": hourly,
            "seconds": {engine: summary(measured) for engine, measured in seconds.items()},
            "tracking_server": server_rates,
            "ray": rates_of_ray(),
        }
    write_result("sweep", result)


def dvc(copy: Path, *command: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *command], cwd=copy, env=settings(), check=True)


def settings() -> dict[str, str]:
    return without_store() | {"DVC_NO_ANALYTICS": "1"}


def seeds(n: int) -> list[int]:
    return list(itertools.islice(SEEDS, n))


def timed(copy: Path, *command: str) -> float:
    """Return the seconds that a command takes. Then wait for what it left to deliver, which does not count."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=copy, env=settings(), stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - started
    wait_for_background(copy)
    return seconds


def sweep(copy: Path, n: int, *options: str) -> float:
    """Return the seconds of a sweep over n new trials."""
    return timed(copy, "-m", "pipeline.sweep", *options, "-S", f"train.seed={','.join(map(str, seeds(n)))}")


def on_ray(copy: Path, n: int) -> float:
    return sweep(copy, n, "--engine", "ray", "--jobs", "1")


def as_experiments(copy: Path, n: int) -> float:
    return sweep(copy, n, "--jobs", "1")


def in_one_process(copy: Path, n: int) -> float:
    params = (copy / "params.yaml").read_text()
    try:
        return timed(copy, "-c", ONE_PROCESS, *map(str, seeds(n)))
    finally:
        (copy / "params.yaml").write_text(params)


def summary(measured: dict[int, list[float]]) -> dict[str, Any]:
    """Return the seconds of all rounds, and from the fastest ones those of a first and of each further trial."""
    few, many = min(measured[FEW]), min(measured[MANY])
    return {
        "trials": {str(n): [round(value, 2) for value in values] for n, values in measured.items()},
        "first_trial": round(few, 2),
        "further_trial": round((many - few) / (MANY - FEW), 2),
    }


def trials_per_hour(copy: Path) -> dict[str, Any]:
    """Return {workers: …} for trials with two epochs, including the start of Ray."""
    result: dict[str, Any] = {"epochs": 2, "trials": TRIALS}
    for workers in WORKERS:
        threads = max(1, (os.cpu_count() or 1) // workers)
        change_params(copy, train={"n_epochs": 2, "threads": threads})
        seconds = sweep(copy, TRIALS, "--engine", "ray", "--jobs", str(workers))
        result[str(workers)] = {
            "threads": threads,
            "seconds": round(seconds, 1),
            "trials_per_hour": round(TRIALS * 3600 / seconds, 1),
        }
    return result


def rows_per_second(folder: Path, copy: Path) -> dict[str, Any]:
    """Measure how fast the server accepts runs like the copy's newest, from clients that share this machine's cores."""
    from mlflow import MlflowClient

    store, run = newest_row(copy)
    (folder / "row").mkdir()
    artifacts = store.download_artifacts(run.info.run_id, "", str(folder / "row"))
    assert run.outputs is not None
    (output,) = run.outputs.model_outputs
    model = store.get_logged_model(output.model_id).artifact_location.removeprefix("file://")
    histories = [point for name in run.data.metrics for point in store.get_metric_history(run.info.run_id, name)]
    files = [path for root in (artifacts, model) for path in Path(root).rglob("*") if path.is_file()]
    with server(folder, copy) as address:
        target = MlflowClient(address)
        experiment_id = target.create_experiment("rates")
        content = (histories, run.data.params, run.data.tags, artifacts, model)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(CLIENTS, spawn, _connect, (address, experiment_id, *content)) as clients:
            list(clients.map(_send_row, range(CLIENTS)))  # so that they have imported mlflow
            started = time.perf_counter()
            list(clients.map(_send_row, range(ROWS)))
            seconds = time.perf_counter() - started
        started = time.perf_counter()
        found = target.search_runs([experiment_id], "attributes.status = 'FINISHED'")
        reading = time.perf_counter() - started
    return {
        "clients": CLIENTS,
        "rows": ROWS,
        "metrics_in_a_row": len(histories),
        "files_in_a_row": len(files),
        "bytes_in_a_row": sum(path.stat().st_size for path in files),
        "rows_written_per_second": round(ROWS / seconds, 2),
        "rows_read_per_second": round(len(found) / reading),
    }


def _connect(address: str, *content: Any) -> None:
    """Connect in each client's process, and keep what it sends."""
    from mlflow import MlflowClient

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    _connected[:] = [MlflowClient(address), *content]


def _send_row(number: int) -> None:
    """Send the requests of one trial's run: parameters, metrics, tags, files, the end, MLflow's own model."""
    from mlflow.entities import LoggedModelStatus, Param

    client, experiment_id, histories, params, tags, artifacts, model = _connected
    run_id = client.create_run(experiment_id, run_name=f"row {number}").info.run_id
    client.log_batch(run_id, params=[Param(name, value) for name, value in params.items()])
    client.log_batch(run_id, metrics=histories)
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    client.log_artifacts(run_id, artifacts)
    client.set_terminated(run_id)
    logged = client.create_logged_model(experiment_id, "autoencoder", run_id)
    client.log_model_artifacts(logged.model_id, model)
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


@contextmanager
def server(folder: Path, copy: Path) -> Iterator[str]:
    """Run `make server` on loopback inside the block and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipeline.server", "--port", str(port), "--folder", str(folder / "server")]
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=copy, env=settings(), stdout=out, stderr=out)
    try:
        while "Ctrl-C ends it." not in log.read_text():
            if process.poll() is not None:
                sys.exit(f"error: the tracking server does not start: {log.read_text()}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def rates_of_ray() -> dict[str, Any]:
    """Measure a cluster whose head has no CPU, and one node, so that the shared data goes from store to store."""
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray.cluster_utils import Cluster

    # As large as the data that pipeline.sweep.ray_engine shares. (It also shares the repository.)
    size = sum(path.stat().st_size for path in Path("data").glob("*/*.safetensors"))
    content = os.urandom(size)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        fetch, nothing = ray.remote(max_retries=0)(_fetch), ray.remote(max_retries=0)(_nothing)
        ray.get(nothing.remote())  # so that a worker is running
        started = time.perf_counter()
        shared = ray.put(content)
        put = time.perf_counter() - started
        got = ray.get(fetch.remote([shared]))
        started = time.perf_counter()
        waiting = [nothing.remote() for _ in range(TASKS)]
        while waiting:
            _, waiting = ray.wait(waiting, timeout=1.0)
        tasks = time.perf_counter() - started
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {
        "shared_bytes": size,
        "seconds_to_put": round(put, 3),
        "seconds_to_fetch_on_another_node": round(got, 3),
        "tasks_per_second": round(TASKS / tasks),
    }


def _fetch(shared: list[Any]) -> float:
    import ray

    started = time.perf_counter()
    ray.get(shared[0])
    return time.perf_counter() - started


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
