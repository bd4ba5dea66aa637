"""Measure what MLflow tracking costs: the pipeline with it and without it (PIPELINE_TRACKING=0), alternating.

    make bench

Two figures, each from one process group on one machine:

- Fixed cost: the extra seconds of train and evaluate with tracking, at the committed parameters but with one epoch.
- The extra seconds of each further epoch, on scikit-learn's digits, whose epochs are short.

The local store exists beforehand. Works in a copy, so the workspace does not change. Writes
reports/benchmarks/tracking.json.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import machine, without_store, write_result
from benchmarks.copies import change_params, copy_workspace, wait_for_background

FIXED_REPETITIONS = 3
EPOCH_REPETITIONS = 3
FEW_EPOCHS, MANY_EPOCHS = 5, 65
ON, OFF = "1", "0"


def main() -> None:
    if not Path("data/prepared/train.safetensors").is_file():
        sys.exit("error: there is no data to train on; `make run` first")
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_workspace(Path(folder) / "copy")
        change_params(copy, train={"n_epochs": 1})
        run_stage(copy, "evaluate", ON)  # creates the store
        wait_for_background(copy)
        fixed: dict[str, list[float]] = {ON: [], OFF: []}
        for _ in range(FIXED_REPETITIONS):
            for tracking in (ON, OFF):
                fixed[tracking].append(run_stage(copy, "train", tracking) + run_stage(copy, "evaluate", tracking))
                wait_for_background(copy)

        change_params(copy, data={"dataset": "digits"}, model={"n_layers": 2})
        for stage in ("prepare", "baselines"):
            run_stage(copy, stage, OFF)
        per_epoch: dict[str, list[float]] = {ON: [], OFF: []}
        for _ in range(EPOCH_REPETITIONS):
            for tracking in (ON, OFF):
                seconds = {}
                for n_epochs in (FEW_EPOCHS, MANY_EPOCHS):
                    change_params(copy, train={"n_epochs": n_epochs})
                    seconds[n_epochs] = run_stage(copy, "train", tracking)
                    wait_for_background(copy)
                per_epoch[tracking].append((seconds[MANY_EPOCHS] - seconds[FEW_EPOCHS]) / (MANY_EPOCHS - FEW_EPOCHS))
    result = {
        "machine": machine(),
        "fixed_seconds": summary(fixed),
        "seconds_per_epoch": summary(per_epoch),
    }
    write_result("tracking", result)
    print(table(result))


def run_stage(folder: Path, stage: str, tracking: str) -> float:
    """Run a stage in a process and return the seconds."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", f"pipeline.{stage}"],
        cwd=folder,
        env=without_store() | {"PIPELINE_TRACKING": tracking},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    medians = {tracking: statistics.median(values) for tracking, values in seconds.items()}
    return {
        "with": [round(value, 4) for value in seconds[ON]],
        "without": [round(value, 4) for value in seconds[OFF]],
        "median_with": round(medians[ON], 4),
        "median_without": round(medians[OFF], 4),
        "median_difference": round(medians[ON] - medians[OFF], 4),
    }


def table(result: dict[str, Any]) -> str:
    rows = ["| | with tracking | without | difference |", "|---|---|---|---|"]
    for name, label in (
        ("fixed_seconds", "train and evaluate, one epoch"),
        ("seconds_per_epoch", "each further epoch"),
    ):
        values = result[name]
        cells = [f"{values[key]:.3f} s" for key in ("median_with", "median_without", "median_difference")]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    machine = result["machine"]
    rows.append(f"\n{machine['hardware']}, {machine['cores']} cores, torch {machine['torch']}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
