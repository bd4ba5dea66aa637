"""Measure the polynomial on the test points: numpy is enough, and torch takes seconds to import."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from pipeline.core.errors import run_command
from pipeline.core.files import load_json, reading, write_out
from pipeline.params import load_params
from pipeline.tracking import runs

MODEL_PATH = Path("models/polynomial.safetensors")
METRICS_PATH = Path("reports/evaluate.json")


def main() -> None:
    METRICS_PATH.unlink(missing_ok=True)  # `persist` keeps it in place
    params = load_params()
    with runs.evaluation_run(params):
        x, y = np.load("data/prepared/test.npy").T
        with reading(MODEL_PATH, "train"):
            coefficients = load_file(MODEL_PATH)["coefficients"].astype(float)
        errors = (np.polyval(coefficients[::-1], x) - y) ** 2
        parts = np.array_split(errors[x.argsort()], params.evaluate.n_parts)
        metrics = {
            "mse": float(errors.mean()),
            "mean_mse": load_json(Path("data/baseline/mean.json"), ["mse"])["mse"],
            "part_mse": {str(number): float(part.mean()) for number, part in enumerate(parts)},
        }
        rows = "".join(f"{one},{squared}\n" for one, squared in zip(x, errors, strict=True))
        write_out(Path("reports/points.csv"), f"x,squared_error\n{rows}")
        write_out(METRICS_PATH, json.dumps({"dataset": params.data.dataset, "test": metrics}, indent=2) + "\n")
    print(f"test MSE {metrics['mse']:.4f}")


if __name__ == "__main__":
    run_command(main)
