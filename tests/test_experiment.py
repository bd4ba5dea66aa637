"""Compare pipeline/experiment.py with dvc.yaml and the network, and check the import contracts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.autoencoder.model import Architecture, AutoEncoder, save_model
from pipeline.core import dvcfiles
from pipeline.experiment import EXPERIMENT
from tests.helpers import PROJECT, small_params


def test_its_stages_and_paths_are_in_dvc_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """dvc.yaml has the experiment's stages, and they write and read the paths that it names."""
    monkeypatch.chdir(PROJECT)
    train, evaluate = dvcfiles.declared(EXPERIMENT.train), dvcfiles.declared(EXPERIMENT.evaluate)
    assert {EXPERIMENT.model_path, EXPERIMENT.history_path} <= set(train["outs"])
    assert {EXPERIMENT.model_path, EXPERIMENT.test_path} <= set(evaluate["deps"])
    assert EXPERIMENT.test_path.startswith(EXPERIMENT.data_folder)
    assert EXPERIMENT.measured_on("valid.best_mse", train["deps"]) in train["deps"]
    assert EXPERIMENT.measured_on("valid.best_mse", []) == EXPERIMENT.test_path


@pytest.mark.parametrize("folder", [PROJECT, PROJECT / "examples/classifier"])
def test_the_evaluation_is_kept_out_of_dvcs_run_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its metrics has `persist`, because a result from the run-cache would complete no MLflow run."""
    stage = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"][EXPERIMENT.evaluate]
    kept = [options for entry in stage["metrics"] if isinstance(entry, dict) for options in entry.values()]
    assert any(options.get("persist") for options in kept)


def test_the_model_takes_the_example(tmp_path: Path) -> None:
    """Two examples give two results, so that the number of examples stays free in MLflow's format."""
    save_model(AutoEncoder(Architecture.from_params(small_params().model)), tmp_path / "model.safetensors")
    model = EXPERIMENT.load_model(str(tmp_path / "model.safetensors"))
    example = torch.from_numpy(EXPERIMENT.example_input(model))
    assert len(model(example)) == len(example) == 2


def test_importing_it_requires_neither_torch_nor_mlflow() -> None:
    """Importing the experiment loads no torch, mlflow, numpy or pandas, because a review in CI has none of them."""
    code = "import sys, pipeline.experiment; sys.exit(bool({'torch', 'mlflow', 'numpy', 'pandas'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("params.py", "", ""),
        ("params.py", "import torch", "Parameters are checked"),
        ("tracking/tags.py", "from pipeline.autoencoder.model import INPUT_SIZE", "The machinery knows"),
        ("review/lock.py", "from pipeline import train", "The machinery knows"),
        ("core/files.py", "import numpy as np", "core computes nothing"),
        ("core/git.py", "from pipeline.tracking import tags", "Arrows point down"),
        ("train.py", "from pipeline import evaluate", "do not import each other"),
        ("sweep/grid.py", "from pipeline.sweep.__main__ import sweep", "command is not imported"),
    ],
)
def test_lint_detects_a_forbidden_import(tmp_path: Path, module: str, line: str, broken: str) -> None:
    """The code breaks no contract, and one forbidden import breaks the contract for it."""
    shutil.copytree(PROJECT / "pipeline", tmp_path / "pipeline")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    path = tmp_path / "pipeline" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == bool(line), done.stdout
    assert not line or any(broken in line for line in done.stdout.splitlines() if line.endswith("BROKEN"))
