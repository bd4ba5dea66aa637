"""Measure the effect of each training parameter: the validation MSE with one of them changed at a time.

    python -m benchmarks.recipe      (about 15 minutes)

Trains the network with 5 layers and bottleneck size 10 for 10 epochs. Does not read the test set. Needs
data/prepared; writes reports/benchmarks/recipe.json.
"""

from typing import Any

import torch

from benchmarks.common import committed_params, load_pixels, machine, write_result
from pipeline.autoencoder.model import Architecture, AutoEncoder
from pipeline.autoencoder.trainer import fit
from pipeline.params import Params

BASE = {"model.bottleneck_size": 10, "model.n_layers": 5, "train.n_epochs": 10}
CHANGES: list[dict[str, Any]] = [
    {},
    {"train.schedule": "constant", "train.lr": 0.001, "train.weight_decay": 0.0, "train.adam_beta2": 0.999},
    {"train.schedule": "constant", "train.lr": 0.001},
    {"train.schedule": "constant"},
    {"model.regularizer": "dropout", "model.dropout_p": 0.0, "train.lr": 0.001},
    {"train.lr": 0.0025},
    {"train.lr": 0.01},
    {"train.batch_size": 128},
    {"train.batch_size": 512},
    {"train.weight_decay": 0.0},
    {"train.weight_decay": 0.3},
    {"train.adam_beta2": 0.999},
]


def main() -> None:
    committed = committed_params()
    train, valid = load_pixels("train"), load_pixels("valid")
    rows = []
    for changes in CHANGES:
        params = changed(committed, BASE | changes)
        torch.manual_seed(params.train.seed)
        model = AutoEncoder(Architecture.from_params(params.model))
        result = fit(model, train, valid, params.train)
        name = ", ".join(f"`{key}={value}`" for key, value in changes.items()) or "as committed"
        valid_mse = round(result.history[result.best_epoch - 1].valid_mse, 6)
        rows.append({"changes": name, "valid_mse": valid_mse})
        print(rows[-1], flush=True)
    shape = {key.partition(".")[2]: value for key, value in BASE.items()}
    write_result("recipe", {"machine": machine(), **shape, "seed": committed.train.seed, "rows": rows})


def changed(params: Params, changes: dict[str, Any]) -> Params:
    """Return changed parameters, checked like those of params.yaml. Keys are dotted, as in `dvc exp run -S`."""
    values = params.model_dump()
    for name, value in changes.items():
        section, _, key = name.partition(".")
        values[section][key] = value
    return Params.model_validate(values)


if __name__ == "__main__":
    main()
