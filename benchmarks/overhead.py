"""Measure the time that `dvc repro` spends outside of the training steps, at the committed parameters.

    python -m benchmarks.overhead      (about as long as three trainings)

Runs `dvc repro --force` in a copy of the workspace that has the raw data and an MLflow store, after one warm-up run.
Subtracts the seconds that MLflow recorded for the training steps. Also runs with one epoch, to separate the time that
is spent once from the time that every epoch spends on validation and its checkpoint. Writes
reports/benchmarks/overhead.json.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import machine, spread, without_store, write_result
from benchmarks.copies import change_params, copy_workspace, newest_row, wait_for_background
from pipeline.params import load_params

REPETITIONS = 2


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_workspace(Path(folder) / "copy")
        shutil.copytree("data/raw", copy / "data/raw")
        change_params(copy, train={"n_epochs": 1})
        repro(copy)
        n_epochs = load_params().train.n_epochs
        short, runs = [], []
        for _ in range(REPETITIONS):
            change_params(copy, train={"n_epochs": 1})
            short.append(repro(copy))
            change_params(copy, train={"n_epochs": n_epochs})
            runs.append(repro(copy))
    outside = spread([run["total"] - run["steps"] for run in runs])
    outside_short = spread([run["total"] - run["steps"] for run in short])
    write_result(
        "overhead",
        {
            "machine": machine(),
            "n_epochs": n_epochs,
            "total_seconds": spread([run["total"] for run in runs]),
            "training_step_seconds": spread([run["steps"] for run in runs]),
            "outside_seconds": outside,
            "outside_seconds_with_one_epoch": outside_short,
            "outside_seconds_per_epoch": round((outside["median"] - outside_short["median"]) / (n_epochs - 1), 2),
            "stage_seconds": {stage: spread([run["stages"][stage] for run in runs]) for stage in runs[0]["stages"]},
        },
    )


def repro(folder: Path) -> dict[str, Any]:
    """Force one run; return its seconds, those of its training steps, and those from each stage's start to the next."""
    starts: dict[str, float] = {}
    started = time.perf_counter()
    command = [sys.executable, "-m", "dvc", "repro", "--force"]
    with subprocess.Popen(command, cwd=folder, env=without_store(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r"Running stage '(\w+)'", line):
                starts[found[1]] = time.perf_counter()
        ended = time.perf_counter()
    if process.wait() != 0:
        sys.exit("error: `dvc repro --force` failed, so nothing can be measured")
    wait_for_background(folder)
    client, row = newest_row(folder)
    steps = sum(point.value for point in client.get_metric_history(row.info.run_id, "time/epoch_seconds"))
    ends = [*list(starts.values())[1:], ended]
    stages = {stage: end - start for (stage, start), end in zip(starts.items(), ends, strict=True)}
    result = {"total": ended - started, "steps": steps, "stages": stages}
    print(result, flush=True)
    return result


if __name__ == "__main__":
    main()
