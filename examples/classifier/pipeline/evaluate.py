"""Measure the trained classifier on the test rows, and draw its confusion matrix.

python -m pipeline.evaluate       (normally through `dvc repro`)
"""

import json
from pathlib import Path

import numpy as np
import torch

from pipeline.classifier.data import load_table
from pipeline.classifier.figures import confusion, save_figure
from pipeline.classifier.network import load_model
from pipeline.classifier.training import log_loss
from pipeline.core.errors import run_command
from pipeline.core.files import write_out
from pipeline.params import load_params
from pipeline.tracking import runs

TEST_PATH = Path("data/prepared/test.safetensors")
MODEL_PATH = Path("models/classifier.safetensors")
METRICS_PATH = Path("reports/evaluate.json")
CONFUSION_PATH = Path("reports/figures/confusion.png")


def main() -> None:
    # dvc.yaml marks this file `persist`, so DVC does not delete it. A failure must not leave it next to new weights.
    METRICS_PATH.unlink(missing_ok=True)
    params = load_params()
    torch.set_num_threads(1)
    with runs.evaluation_run(params):
        test, model = load_table(TEST_PATH), load_model(MODEL_PATH)
        rows = torch.from_numpy(test.features), torch.from_numpy(test.classes)
        with torch.no_grad():
            predicted = model(rows[0]).argmax(1).numpy()
        counts = np.zeros((model.shape[1], model.shape[1]), int)
        np.add.at(counts, (test.classes, predicted), 1)
        metrics = {
            "log_loss": log_loss(model, rows),
            "accuracy": float((predicted == test.classes).mean()),
            "share_of_the_largest_class": float(np.bincount(test.classes).max() / len(test)),
        }
        write_out(METRICS_PATH, json.dumps({"test": metrics}, indent=2) + "\n")
        save_figure(confusion(counts, f"{len(test)} test rows"), CONFUSION_PATH)
    print(f"test accuracy {metrics['accuracy']:.1%}, log-loss {metrics['log_loss']:.3f}")


if __name__ == "__main__":
    run_command(main)
