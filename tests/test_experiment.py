"""pipeline/experiment.py against dvc.yaml and the network, and the walls around it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.autoencoder.model import Architecture, AutoEncoder, save_model
from pipeline.core import dvcfiles
from pipeline.experiment import EXPERIMENT
from tests.helpers import PROJECT, small_params


def test_what_it_names_is_in_dvc_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stages are there, and write and read what it says."""
    monkeypatch.chdir(PROJECT)
    train, evaluate = dvcfiles.declared(EXPERIMENT.train), dvcfiles.declared(EXPERIMENT.evaluate)
    assert {EXPERIMENT.model_path, EXPERIMENT.history_path} <= set(train["outs"])
    assert {EXPERIMENT.model_path, EXPERIMENT.test_path} <= set(evaluate["deps"])
    assert EXPERIMENT.test_path.startswith(EXPERIMENT.data_folder)
    assert any(path.startswith(EXPERIMENT.data_folder) for path in train["deps"])


def test_the_model_takes_the_example(tmp_path: Path) -> None:
    """Two examples in, two answers out: the number of examples stays free in MLflow's format."""
    save_model(AutoEncoder(Architecture.from_params(small_params().model)), tmp_path / "model.safetensors")
    example = torch.from_numpy(EXPERIMENT.example_input())
    assert len(EXPERIMENT.load_model(str(tmp_path / "model.safetensors"))(example)) == len(example) == 2


def test_importing_it_takes_neither_torch_nor_mlflow() -> None:
    """A review in CI has neither."""
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
def test_lint_notices_an_arrow_through_a_wall(tmp_path: Path, module: str, line: str, broken: str) -> None:
    """As it is no contract is broken; with one import that one is."""
    shutil.copytree(PROJECT / "pipeline", tmp_path / "pipeline")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    path = tmp_path / "pipeline" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == bool(line), done.stdout
    assert not line or any(broken in line for line in done.stdout.splitlines() if line.endswith("BROKEN"))
