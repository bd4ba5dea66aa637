"""The points of a sweep."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import PipelineError
from pipeline.experiment import EXPERIMENT
from pipeline.params import load_params
from pipeline.sweep.grid import default_name, digest_in_lock, make_points, parse_grid, shared_stages
from pipeline.tracking import fingerprints
from tests.helpers import small_params, write_params


def test_the_default_grid_is_six_sizes_times_three_seeds(workspace: Path) -> None:
    """18 points, all sizes of the first seed before the second, with names that read."""
    points = make_points(parse_grid([*EXPERIMENT.default_grid]))
    assert len({point.experiment for point in points}) == 18
    assert [point.name for point in points[:7]] == [
        *(f"digits k={size} seed=0" for size in (2, 4, 8, 16, 32, 64)),
        "digits k=2 seed=1",
    ]


def test_any_parameter_makes_a_grid(workspace: Path) -> None:
    """Several in one argument, one value or many, numbers, null and lists; what varies comes first in the name."""
    grid = parse_grid(["train.lr=1e-3,0.01 train.n_epochs=1", "model.n_layers=null", "model.hidden_sizes=[64,32]"])
    points = make_points(grid)
    others = "n_layers=None hidden_sizes=[64, 32] n_epochs=1"
    assert [point.name for point in points] == [f"digits k=2 seed=0 lr={lr} {others}" for lr in (0.001, 0.01)]
    assert points[1].params == load_params(
        changes={"train.lr": 0.01, "train.n_epochs": 1, "model.n_layers": None, "model.hidden_sizes": [64, 32]}
    )


def test_a_point_is_given_to_dvc_as_it_was_given_to_the_sweep(workspace: Path) -> None:
    """Text, null and lists as `dvc exp run -S` reads them; a name of which a file's name can be made."""
    arguments = ["model.n_layers=null model.hidden_sizes=[64,32],[32] train.precision=float32"]
    arguments += [
        "data.train_ratio=0.7,0.8 train.lr=0.001,0.002 train.weight_decay=0.01,0.02 train.adam_beta2=0.9,0.95"
    ]
    point = make_points(parse_grid(arguments))[0]
    assert point.settings[:6] == [
        *("-S", "model.n_layers=null"),
        *("-S", "model.hidden_sizes=[64, 32]"),
        *("-S", 'train.precision="float32"'),
    ]
    assert re.fullmatch(r"[\w.-]{1,117}", point.experiment)
    assert point.experiment.endswith(f"-{point.digest}")


def test_a_sweep_is_named_after_its_grid() -> None:
    """The parameters that vary, and the values of those that do not."""
    grid = parse_grid(["model.bottleneck_size=2,4 train.seed=0,1 train.device=cpu"])
    assert default_name(grid) == "bottleneck_size,seed,device=cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.lr"], "-S wants a parameter and its values, as train.lr=0.001,0.005; got 'train.lr'"),
        (["train.lr=1", "train.lr=2"], "train.lr is given twice"),
        (["train.lr=0.1,-1"], r"^-S \(GRID\) train.lr=-1 gives .*\n  train.lr: must be greater than 0, got -1"),
        (["train.rate=1"], r"train.rate: unknown key"),
        (["train.lr=[1"], "is not a list of values"),
    ],
)
def test_a_grid_that_makes_no_sense_is_one_message(workspace: Path, arguments: list[str], message: str) -> None:
    """Before anything runs."""
    with pytest.raises(PipelineError, match=message):
        make_points(parse_grid(arguments))


def test_what_is_wrong_in_params_yaml_is_not_blamed_on_the_grid(workspace: Path) -> None:
    """A value that the grid does not vary."""
    write_params(small_params(), workspace)
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("precision: float32", "precision: half"))
    with pytest.raises(PipelineError, match=r"^params\.yaml holds values .*\n  train.precision"):
        make_points(parse_grid(["train.seed=0,1"]))


def test_seeds_that_agree_in_32_bits_are_two_points(workspace: Path) -> None:
    """As 42195 and 44273 did: the hash has 64 bits, and a grid has as many points as it has seeds."""
    points = make_points(parse_grid(["train.seed=42195,44273"]))
    assert len(points) == 2
    assert all(len(point.digest) == 16 for point in points)


def test_a_point_is_known_by_parameters_and_code(workspace: Path) -> None:
    """Another parameter or another line of code is another point; what no stage reads is not."""
    grid = parse_grid(["train.seed=0"])
    (before,) = make_points(grid)
    named_otherwise = make_points(parse_grid(["train.seed=0", "train.lr=0.005,0.01"]))[0]
    assert named_otherwise.name == "digits k=2 seed=0 lr=0.005"
    assert named_otherwise.digest == before.digest
    (workspace / "pipeline/sweep/__main__.py").write_text("# no stage reads this\n")
    assert make_points(grid)[0].experiment == before.experiment
    write_params(small_params(train__n_epochs=3))
    (other_params,) = make_points(grid)
    with (workspace / "pipeline/autoencoder/trainer.py").open("a") as file:
        file.write("# a stage reads this\n")
    (other_code,) = make_points(grid)
    assert len({before.experiment, other_params.experiment, other_code.experiment}) == 3


def test_a_lock_is_of_the_point_that_has_its_parameters_and_code(workspace: Path) -> None:
    """dvc.lock's sections and modules give the point's hash; another value or other code another one."""
    (point,) = make_points(parse_grid(["train.seed=5"]))
    sections = point.params.model_dump()
    code = [{"path": path, "md5": md5} for path, md5 in fingerprints.code_of_stages().items()]
    stages: dict[str, Any] = {
        "prepare": {"deps": code, "params": {"params.yaml": {"data": sections.pop("data")}}},
        "pca_probes": {"deps": [], "params": {"params.yaml": {"model.bottleneck_size": 2}}},
        "train": {
            "deps": [{"path": "data/prepared/train.safetensors", "md5": "0"}],
            "params": {"params.yaml": sections},
        },
    }
    assert digest_in_lock({"stages": stages}) == point.digest
    weights = {"path": "models/autoencoder.safetensors", "md5": "new"}
    stages["train"]["outs"] = [weights]
    stages["evaluate"] = {"deps": [weights | {"md5": "old"}]}  # as `dvc exp run train` leaves it
    assert digest_in_lock({"stages": stages}) is None
    del stages["evaluate"]
    train_section = sections.pop("train")
    single = {f"train.{name}": value for name, value in train_section.items()}
    stages["evaluate"] = {"params": {"params.yaml": single}}  # a stage may read single values of a section
    assert digest_in_lock({"stages": stages}) == point.digest
    del stages["evaluate"]
    sections["train"] = train_section
    code[0]["md5"] = "other"
    assert digest_in_lock({"stages": stages}) not in (None, point.digest)
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
def test_points_share_the_stages_before_the_training_that_no_parameter_reaches(
    workspace: Path, grid: str, stages: list[str]
) -> None:
    """Never the training itself, which would take the place of the workspace's own."""
    assert shared_stages(make_points(parse_grid([grid]))) == stages
