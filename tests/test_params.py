"""Test which values params.yaml may hold, and the error for every other value."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import PipelineError
from pipeline.params import Params, load_params
from tests.helpers import PROJECT, edited, run, small_params, write_params

README_ROWS = re.findall(r"^\| `(\w+\.\w+)` \| [^|]* \| ([^|]*) \|", (PROJECT / "README.md").read_text(), re.MULTILINE)


def load_changed(folder: Path, text: str) -> str:
    """Write params.yaml, load it, and return the error's message."""
    path = folder / "params.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError) as error:
        load_params(path)
    return str(error.value)


def changed(section: str, key: str, value: object) -> str:
    values = small_params().model_dump()
    values[section][key] = value
    return yaml.safe_dump(values)


def test_committed_params_are_valid() -> None:
    """The committed params.yaml is valid, and leaves nothing to the machine with `auto`."""
    params = load_params(PROJECT / "params.yaml")
    assert "auto" not in (params.train.device, params.train.threads, params.train.precision)


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("train", "lr", -1, "train.lr: must be greater than 0, got -1"),
        ("train", "lr", "fast", "train.lr: must be a valid number, got 'fast'"),
        ("train", "lr", float("nan"), "train.lr: must be a finite number, got nan"),
        ("train", "n_epochs", True, "train.n_epochs: must be a valid integer, got True"),
        ("train", "n_epochs", 0, "train.n_epochs: must be greater than or equal to 1, got 0"),
        ("train", "precision", "float16", "train.precision: must be 'auto', 'float32' or 'bfloat16', got 'float16'"),
        ("train", "schedule", "cosine", "train.schedule: must be 'one_cycle' or 'constant', got 'cosine'"),
        ("train", "weight_decay", -0.1, "train.weight_decay: must be greater than or equal to 0, got -0.1"),
        ("train", "adam_beta2", 1, "train.adam_beta2: must be less than 1, got 1"),
        ("train", "batch_size", 1, "train.batch_size: must be greater than or equal to 2, got 1"),
        ("train", "device", "gpu", "train.device: must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
        ("train", "threads", "many", "train.threads: must be a valid integer or 'auto', got 'many'"),
        ("data", "train_ratio", 1.0, "data.train_ratio: must be less than 1, got 1.0"),
        ("data", "dataset", "cifar", "data.dataset: must be 'mnist' or 'digits', got 'cifar'"),
        ("model", "bottleneck_size", 785, "model.bottleneck_size: must be less than or equal to 784, got 785"),
        ("model", "hidden_sizes", [3, 0], "model.hidden_sizes.1: must be greater than or equal to 1, got 0"),
        ("model", "hidden_sizes", [64], "model: give either n_layers or hidden_sizes and set the other to null"),
        ("model", "dropout_p", 1, "model.dropout_p: must be less than 1, got 1"),
        ("evaluate", "manifold_sise", 3, "evaluate.manifold_sise: unknown key"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, section: str, key: str, value: object, expected: str) -> None:
    """The error for a wrong value is `section.key: what it must be, what it is`."""
    message = load_changed(tmp_path, changed(section, key, value))
    assert f"\n  {expected}" in message
    assert message.count("\n") == 1


def outermost(may_be: str) -> tuple[list[Any], list[Any]]:
    """Return the ends of the range, or the choices, that the README allows, and values just outside."""
    tiny, text = 1e-12, may_be.replace("2³²−1", str(2**32 - 1))
    if match := re.match(r"(\d+) … (\d+)", text):
        low, high = map(int, match.groups())
        return [low, high], [low - 1, high + 1]
    if match := re.match(r"from (\d+)", text):
        return [int(match[1])], [int(match[1]) - 1]
    if match := re.match(r"(\d) ≤ \S+ < (\d)", text):
        return [int(match[1]), int(match[2]) - tiny], [-tiny, int(match[2])]
    if match := re.match(r"above (\d+)", text):
        return [int(match[1]) + tiny], [int(match[1])]
    if match := re.match(r"between (\d) and (\d)", text):
        return [int(match[1]) + tiny, int(match[2]) - tiny], [int(match[1]), int(match[2])]
    return re.findall(r"`([^`]+)`", may_be), ["another"]


@pytest.mark.parametrize(
    ("name", "may_be"),
    [(name, may_be) for name, may_be in README_ROWS if name.split(".")[1] not in ("hidden_sizes", "device", "threads")],
)
def test_ranges_are_those_of_the_readme(tmp_path: Path, name: str, may_be: str) -> None:
    """The ends of each range in the README's table are allowed, and values outside are not."""
    section, key = name.split(".")
    allowed, refused = outermost(may_be)
    assert allowed
    for value in allowed:
        (tmp_path / "params.yaml").write_text(changed(section, key, value))
        assert load_params(tmp_path / "params.yaml").flat()[name] == value
    for value in refused:
        assert f"\n  {name}: must be " in load_changed(tmp_path, changed(section, key, value))


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    """One error lists every unknown, missing, mistyped and out-of-range key."""
    values = small_params().model_dump()
    del values["data"]["split_seed"]
    values["train"] |= {"lr": 0, "epochs": 3}
    del values["evaluate"]
    message = load_changed(tmp_path, yaml.safe_dump(values))
    for problem in ("data.split_seed: missing", "train.lr: must", "train.epochs: unknown key", "evaluate: missing"):
        assert problem in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must hold sections"),
        ("- 1\n", "must hold sections"),
        ("train: [1\n", "is not valid YAML"),
        ("train: {lr: \x00}", "is not valid YAML"),
        ("train: {seed: 2024-02-30}", "is not valid YAML"),
    ],
)
def test_a_file_that_holds_no_sections(tmp_path: Path, text: str, expected: str) -> None:
    """An empty file, a list or broken YAML fails with a one-line error."""
    message = load_changed(tmp_path, text)
    assert expected in message
    assert "\n" not in message


def test_a_missing_file(tmp_path: Path) -> None:
    """Without params.yaml the error tells the user where to run the command."""
    with pytest.raises(PipelineError, match="run this in the repository's root"):
        load_params(tmp_path / "params.yaml")


def test_a_stage_ends_with_code_2_and_no_traceback(tmp_path: Path) -> None:
    """In a real process, a user's mistake gives an `error:` line and exit code 2."""
    write_params(small_params(), tmp_path)
    with edited(tmp_path / "params.yaml", "seed: 0", "seed: -1"):
        done = run(tmp_path, "pipeline.prepare", ok=False, PYTHONPATH=str(PROJECT))
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml holds values that are not allowed:")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("text", "value"), [("1e-05", 1e-05), ("2E-3", 0.002), ("1.0e-05", 1e-05), ("+1e2", 100.0)])
def test_numbers_as_dvc_writes_them(tmp_path: Path, text: str, value: float) -> None:
    """1e-05, which `dvc exp run -S train.lr=0.00001` writes, is read as a number, and text stays text."""
    path = tmp_path / "params.yaml"
    write_params(small_params(), tmp_path)
    with edited(path, "lr: 0.005", f"lr: {text}"):
        assert load_params(path).train.lr == value
    with (
        edited(path, "lr: 0.005", f"lr: x{text}"),
        pytest.raises(PipelineError, match=r"train\.lr: must be a valid number"),
    ):
        load_params(path)


def test_a_change_to_a_malformed_section_is_an_error(tmp_path: Path) -> None:
    """A grid's value for `train.seed` is an error if `train` in params.yaml is not a section."""
    path = tmp_path / "params.yaml"
    path.write_text("train: 5\n")
    with pytest.raises(PipelineError, match="holds values that are not allowed"):
        load_params(path, {"train.seed": 1})


def test_flat_names_every_value() -> None:
    """`flat` gives each value of each section its dotted name."""
    params = small_params()
    flat = params.flat()
    assert flat["model.bottleneck_size"] == 2
    assert len(flat) == sum(len(section) for section in params.model_dump().values())


@settings(deadline=None)  # a busy machine must not fail the test
@given(
    bottleneck_size=st.integers(1, 784),
    hidden_sizes=st.lists(st.integers(1, 2000), max_size=5),
    lr=st.floats(0, 10, exclude_min=True),
    ratio=st.floats(0, 1, exclude_min=True, exclude_max=True),
    threads=st.one_of(st.just("auto"), st.integers(1, 64)),
    seed=st.integers(0, 2**32 - 1),
)
def test_valid_values_pass_unchanged(
    bottleneck_size: int, hidden_sizes: list[int], lr: float, ratio: float, threads: object, seed: int
) -> None:
    """Every value in range survives the round trip through YAML unchanged."""
    values = small_params().model_dump()
    values["model"] |= {"bottleneck_size": bottleneck_size, "n_layers": None, "hidden_sizes": hidden_sizes}
    values["train"] |= {"lr": lr, "threads": threads, "seed": seed}
    values["data"]["train_ratio"] = ratio
    assert Params.model_validate(yaml.safe_load(yaml.safe_dump(values))).model_dump() == values
