"""Measure what a training's bytes depend on beyond code, data and parameters, and how large the difference is.

    python -m benchmarks.reproducibility [--epochs N] [--python INTERPRETER]      (about 8 minutes)

Trains the committed network in one process after another, each with one thing changed, and compares the
weights with those of the first process. Includes other training seeds, for scale. `--python` adds the
interpreter of another environment, to compare with its torch. Needs data/prepared; writes
reports/benchmarks/reproducibility.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.common import load_pixels, write_result
from pipeline.params import load_params

AS_COMMITTED = "as committed"
# Name, environment variables, changes of `train` (`float64` is not one of its parameters).
VARIANTS: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    (AS_COMMITTED, {}, {}),
    ("again", {}, {}),
    ("1 thread", {}, {"threads": 1}),
    ("4 threads", {}, {"threads": 4}),
    ("PyTorch's own kernels without AVX2 (ATEN_CPU_CAPABILITY=default)", {"ATEN_CPU_CAPABILITY": "default"}, {}),
    ("MKL's matrix products without AVX2 (MKL_CBWR=COMPATIBLE)", {"MKL_CBWR": "COMPATIBLE"}, {}),
    ("oneDNN without AVX2 (ONEDNN_MAX_CPU_ISA=SSE41)", {"ONEDNN_MAX_CPU_ISA": "SSE41"}, {}),
    ("float64 instead of float32", {}, {"float64": True}),
    ("train.seed 1", {}, {"seed": 1}),
    ("train.seed 2", {}, {"seed": 2}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--python", action="append", default=[], metavar="INTERPRETER")
    parser.add_argument("--train", nargs=2, metavar=("WEIGHTS", "CHANGES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(Path(arguments.train[0]), json.loads(arguments.train[1]))))
        return

    runs = [(name, sys.executable, environment, changes) for name, environment, changes in VARIANTS]
    runs += [("another torch", interpreter, {}, {}) for interpreter in arguments.python]
    rows: list[dict[str, Any]] = []
    machine: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights: list[dict[str, np.ndarray]] = []
        for number, (name, interpreter, environment, changes) in enumerate(runs):
            path = Path(folder, f"{number}.safetensors")
            command = [interpreter, "-m", "benchmarks.reproducibility", "--train", str(path)]
            done = subprocess.run(
                [*command, json.dumps({"n_epochs": arguments.epochs} | changes)],
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                check=True,
            )
            result = json.loads(done.stdout)
            machine = machine or result["machine"]
            weights.append(load_file(path))
            if name == "another torch":
                name = f"torch {result['machine']['torch']}"
            rows.append({"variant": name} | compare(weights[0], weights[-1]) | result["metrics"])
            print(json.dumps(rows[-1]), flush=True)
    params = load_params().model_dump(include={"model", "train"})
    write_result("reproducibility", {"machine": machine, "n_epochs": arguments.epochs, "params": params, "rows": rows})


def compare(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return whether two networks are bit-identical, and the L2 norm of their difference over that of the first."""
    from pipeline.review.verify import distance

    identical = all(old[name].tobytes() == new[name].tobytes() for name in old)
    return {"identical": identical, "weights_relative_difference": distance(old, new)}


def train(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Train as `pipeline.train` does, with some values of the `train` section changed, and write the weights."""
    import torch

    from pipeline.autoencoder.environment import fingerprint
    from pipeline.autoencoder.model import Architecture, AutoEncoder, save_model
    from pipeline.autoencoder.trainer import fit, make_deterministic, reconstruction_mse

    params = load_params()
    is_double = changes.pop("float64", False)
    train_params = params.train.model_copy(update=changes)
    assert train_params.threads != "auto", "params.yaml has a number"
    make_deterministic(train_params.threads)
    dtype = torch.float64 if is_double else torch.float32
    pixels = {name: load_pixels(name).to(dtype) for name in ("train", "valid", "test")}
    torch.manual_seed(train_params.seed)
    model = AutoEncoder(Architecture.from_params(params.model)).to(dtype)
    result = fit(model, pixels["train"], pixels["valid"], train_params)
    model.load_state_dict(result.weights)
    save_model(model, path)
    metrics = {
        "valid_mse": result.history[result.best_epoch - 1].valid_mse,
        "test_mse": reconstruction_mse(model, pixels["test"]),
    }
    return {"metrics": metrics, "machine": fingerprint("cpu")}


if __name__ == "__main__":
    main()
