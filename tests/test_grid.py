"""The points of a sweep."""

from pathlib import Path

import pytest

from pipeline import grid as grids
from pipeline.errors import PipelineError
from pipeline.params import load_params
from tests.helpers import small_params, write_params


def test_the_default_grid_is_six_sizes_times_three_seeds(workspace: Path) -> None:
    """18 points, all sizes of the first seed before the second, with names that read."""
    points = grids.make_points(grids.parse_grid(grids.DEFAULT_GRID))
    assert len({point.experiment for point in points}) == 18
    assert [point.name for point in points[:7]] == [
        *(f"digits k={size} seed=0" for size in (2, 4, 8, 16, 32, 64)),
        "digits k=2 seed=1",
    ]


def test_any_parameter_makes_a_grid(workspace: Path) -> None:
    """Several in one argument, one value or many, numbers, null and lists; what varies is in the name."""
    grid = grids.parse_grid(
        ["train.lr=1e-3,0.01 train.n_epochs=1", "model.n_layers=null", "model.hidden_sizes=[64,32]"]
    )
    points = grids.make_points(grid)
    assert [point.name for point in points] == ["digits k=2 seed=0 lr=0.001", "digits k=2 seed=0 lr=0.01"]
    assert points[1].params == load_params(
        changes={"train.lr": 0.01, "train.n_epochs": 1, "model.n_layers": None, "model.hidden_sizes": [64, 32]}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.lr"], "-S wants a parameter and its values, as train.lr=0.001,0.005; got 'train.lr'"),
        (["train.lr=1", "train.lr=2"], "train.lr is given twice"),
        (["train.lr=0.1,-1"], r"train.lr: must be greater than 0, got -1"),
        (["train.rate=1"], r"train.rate: unknown key"),
        (["train.lr=[1"], "is not a list of values"),
    ],
)
def test_a_grid_that_makes_no_sense_is_one_message(workspace: Path, arguments: list[str], message: str) -> None:
    """Before anything runs."""
    with pytest.raises(PipelineError, match=message):
        grids.make_points(grids.parse_grid(arguments))


def test_a_point_is_known_by_parameters_and_code(workspace: Path) -> None:
    """Another parameter or another line of code is another point; what no stage reads is not."""
    grid = grids.parse_grid(["train.seed=0"])
    (before,) = grids.make_points(grid)
    named_otherwise = grids.make_points(grids.parse_grid(["train.seed=0", "train.lr=0.005,0.01"]))[0]
    assert named_otherwise.name == "digits k=2 seed=0 lr=0.005"
    assert grids.digest(named_otherwise.experiment) == grids.digest(before.experiment)
    (workspace / "pipeline/sweep.py").write_text("# no stage reads this\n")
    assert grids.make_points(grid)[0].experiment == before.experiment
    write_params(small_params(train__n_epochs=3))
    (other_params,) = grids.make_points(grid)
    with (workspace / "pipeline/training.py").open("a") as file:
        file.write("# a stage reads this\n")
    (other_code,) = grids.make_points(grid)
    assert len({before.experiment, other_params.experiment, other_code.experiment}) == 3
