"""The trials of a sweep: grids, names and digests."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import PipelineError
from pipeline.experiment import EXPERIMENT
from pipeline.params import load_params
from pipeline.sweep.grid import default_name, digest_in_lock, make_trials, parse_grid, shared_stages
from pipeline.tracking import fingerprints
from tests.helpers import small_params, write_params


def test_the_default_grid_is_six_sizes_times_three_seeds(workspace: Path) -> None:
    """The default grid has 18 trials with readable names, all sizes of one seed before the next seed."""
    trials = make_trials(parse_grid([*EXPERIMENT.default_grid]))
    assert len({trial.experiment for trial in trials}) == 18
    assert [trial.name for trial in trials[:7]] == [
        *(f"digits k={size} seed=0" for size in (2, 4, 8, 16, 32, 64)),
        "digits k=2 seed=1",
    ]


def test_any_parameter_makes_a_grid(workspace: Path) -> None:
    """A grid takes several parameters per argument, numbers, null and lists; varied ones come first in the name."""
    grid = parse_grid(["train.lr=1e-3,0.01 train.n_epochs=1", "model.n_layers=null", "model.hidden_sizes=[64,32]"])
    trials = make_trials(grid)
    others = "n_layers=None hidden_sizes=[64, 32] n_epochs=1"
    assert [trial.name for trial in trials] == [f"digits k=2 seed=0 lr={lr} {others}" for lr in (0.001, 0.01)]
    assert trials[1].params == load_params(
        changes={"train.lr": 0.01, "train.n_epochs": 1, "model.n_layers": None, "model.hidden_sizes": [64, 32]}
    )


def test_a_trials_values_reach_dvc_unchanged(workspace: Path) -> None:
    """Text, null and lists are written as `dvc exp run -S` reads them, and the name can be a file's name."""
    arguments = ["model.n_layers=null model.hidden_sizes=[64,32],[32] train.precision=float32"]
    arguments += [
        "data.train_ratio=0.7,0.8 train.lr=0.001,0.002 train.weight_decay=0.01,0.02 train.adam_beta2=0.9,0.95"
    ]
    trial = make_trials(parse_grid(arguments))[0]
    assert trial.settings[:6] == [
        *("-S", "model.n_layers=null"),
        *("-S", "model.hidden_sizes=[64, 32]"),
        *("-S", 'train.precision="float32"'),
    ]
    assert re.fullmatch(r"[\w.-]{1,117}", trial.experiment)
    assert trial.experiment.endswith(f"-{trial.digest}")


def test_a_sweep_is_named_after_its_grid() -> None:
    """The name lists the varied parameters, and the others with their value."""
    grid = parse_grid(["model.bottleneck_size=2,4 train.seed=0,1 train.device=cpu"])
    assert default_name(grid) == "bottleneck_size,seed,device=cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.lr"], "-S needs a parameter and its values, like train.lr=0.001,0.005; got 'train.lr'"),
        (["train.lr=1", "train.lr=2"], "train.lr is given twice"),
        (["train.lr=0.1,-1"], r"^-S \(GRID\) train.lr=-1 gives .*\n  train.lr: must be greater than 0, got -1"),
        (["train.rate=1"], r"train.rate: unknown key"),
        (["train.lr=[1"], "is not a list of values"),
    ],
)
def test_a_bad_grid_is_an_error(workspace: Path, arguments: list[str], message: str) -> None:
    """A bad grid raises an error that names the cause, before anything runs."""
    with pytest.raises(PipelineError, match=message):
        make_trials(parse_grid(arguments))


def test_a_bad_value_in_params_yaml_is_not_blamed_on_the_grid(workspace: Path) -> None:
    """The error for a bad value that the grid does not vary names params.yaml."""
    write_params(small_params(), workspace)
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("precision: float32", "precision: half"))
    with pytest.raises(PipelineError, match=r"^params\.yaml holds values .*\n  train.precision"):
        make_trials(parse_grid(["train.seed=0,1"]))


def test_digests_that_agree_in_32_bits_are_two_trials(workspace: Path) -> None:
    """Seeds 42195 and 44273, whose digests once agreed in 32 bits, are two trials: the digest has 64 bits."""
    trials = make_trials(parse_grid(["train.seed=42195,44273"]))
    assert len(trials) == 2
    assert all(len(trial.digest) == 16 for trial in trials)


def test_a_trial_is_identified_by_parameters_and_code(workspace: Path) -> None:
    """Another parameter or line of code makes another trial; code that no stage reads does not."""
    grid = parse_grid(["train.seed=0"])
    (before,) = make_trials(grid)
    named_otherwise = make_trials(parse_grid(["train.seed=0", "train.lr=0.005,0.01"]))[0]
    assert named_otherwise.name == "digits k=2 seed=0 lr=0.005"
    assert named_otherwise.digest == before.digest
    (workspace / "pipeline/sweep/__main__.py").write_text("# no stage reads this\n")
    assert make_trials(grid)[0].experiment == before.experiment
    write_params(small_params(train__n_epochs=3))
    (other_params,) = make_trials(grid)
    with (workspace / "pipeline/autoencoder/trainer.py").open("a") as file:
        file.write("# a stage reads this\n")
    (other_code,) = make_trials(grid)
    assert len({before.experiment, other_params.experiment, other_code.experiment}) == 3


def test_a_lock_has_the_digest_of_its_parameters_and_code(workspace: Path) -> None:
    """dvc.lock's parameters and modules give the trial's digest; incomplete or contradictory locks give none."""
    (trial,) = make_trials(parse_grid(["train.seed=5"]))
    sections = trial.params.model_dump()
    code = [{"path": path, "md5": md5} for path, md5 in fingerprints.code_of_stages().items()]
    stages: dict[str, Any] = {
        "prepare": {"deps": code, "params": {"params.yaml": {"data": sections.pop("data")}}},
        "pca_probes": {"deps": [], "params": {"params.yaml": {"model.bottleneck_size": 2}}},
        "train": {
            "deps": [{"path": "data/prepared/train.safetensors", "md5": "0"}],
            "params": {"params.yaml": sections},
        },
    }
    assert digest_in_lock({"stages": stages}) == trial.digest
    weights = {"path": "models/autoencoder.safetensors", "md5": "new"}
    stages["train"]["outs"] = [weights]
    stages["evaluate"] = {"deps": [weights | {"md5": "old"}]}  # as `dvc exp run train` leaves it
    assert digest_in_lock({"stages": stages}) is None
    del stages["evaluate"]
    train_section = sections.pop("train")
    single = {f"train.{name}": value for name, value in train_section.items()}
    stages["evaluate"] = {"params": {"params.yaml": single}}  # a stage may read single values of a section
    assert digest_in_lock({"stages": stages}) == trial.digest
    del stages["evaluate"]
    sections["train"] = train_section
    code[0]["md5"] = "other"
    assert digest_in_lock({"stages": stages}) not in (None, trial.digest)
    sections["train"]["lr"] = -1
    assert digest_in_lock({"stages": stages}) is None
    assert digest_in_lock({}) is None


@pytest.mark.parametrize(
    ("grid", "stages"),
    [
        ("train.lr=0.1,0.2", ["prepare", "baselines", "pca_probes"]),
        ("model.bottleneck_size=2,3 train.seed=0", ["prepare", "baselines"]),
        ("data.split_seed=0,1", []),
        ("evaluate.manifold_size=5,6", ["prepare", "baselines", "pca_probes"]),
    ],
)
def test_trials_share_the_stages_that_no_varied_parameter_reaches(
    workspace: Path, grid: str, stages: list[str]
) -> None:
    """The training is never shared, because it would replace the workspace's own results."""
    assert shared_stages(make_trials(parse_grid([grid]))) == stages
