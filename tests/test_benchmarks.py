"""What the project is measured against is what it says, and the page of figures is that of the measurements."""

import copy
import json
import re
import statistics
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from benchmarks import quality, recipe, sweep, table, throughput
from benchmarks.quality import EmulatedBfloat16
from benchmarks.seed import seed_epoch, seed_network
from benchmarks.time_to_quality import EXPERIMENTS
from pipeline.model import Architecture, AutoEncoder
from pipeline.params import load_params
from pipeline.training import epoch_seed, fit
from tests.helpers import PROJECT, random_split, small_params

RESULTS = PROJECT / "reports/benchmarks"


def measured(name: str) -> dict[str, Any]:
    """A benchmark's result, where there is one; where there is none, the page of figures says so."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"benchmarks.{name} was not measured")
    return json.loads(path.read_text())


def test_the_original_loop_trains_as_a_plain_one() -> None:
    """Its losses equal those of a DataLoader, nn.MSELoss and Adam's textbook step, for 20 steps."""
    images = torch.from_numpy(random_split(20 * 256).pixels())
    torch.manual_seed(0)
    model = seed_network(bottleneck_size=10, n_layers=2)
    twin = copy.deepcopy(model).train()
    torch.manual_seed(1)
    losses = list(seed_epoch(model, torch.optim.Adam(model.parameters()), images))
    torch.manual_seed(1)
    order = torch.randperm(len(images)).tolist()
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.001, betas=(0.9, 0.999), eps=1e-8, foreach=False, fused=False)
    plain = []
    for batch in DataLoader(images, batch_size=256, sampler=order):  # type: ignore[arg-type]
        loss = nn.MSELoss()(twin(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plain.append(loss.item())
    assert len(losses) == 20
    assert losses == pytest.approx(plain, rel=1e-4)


def test_the_originals_experiment_is_one_command_away() -> None:
    """With the parameters of the README's command, fit trains as the original's loop does."""
    (command,) = re.findall(r"^dvc exp run .*constant.*\\\n.*$", (PROJECT / "README.md").read_text(), re.MULTILINE)
    changes = {key.replace(".", "__"): yaml.safe_load(value) for key, value in re.findall(r"-S (\S+)=(\S+)", command)}
    params = small_params(**changes | {"model__n_layers": 3}, train__batch_size=256, train__n_epochs=2)
    images = torch.from_numpy(random_split(4 * 256).pixels())
    model = AutoEncoder(Architecture.from_params(params.model))
    original = seed_network(params.model.bottleneck_size, 3)
    for ours, theirs in zip(model.state_dict().values(), original.state_dict().values(), strict=True):
        theirs.copy_(ours)
    optimizer = torch.optim.Adam(original.parameters())
    losses = []
    for epoch in (1, 2):
        torch.manual_seed(epoch_seed(params.train.seed, epoch))
        losses.append(statistics.mean(seed_epoch(original, optimizer, images)))
    history = fit(model, images, images, params.train).history
    assert [record.train_mse for record in history] == pytest.approx(losses, rel=1e-3)


def test_the_original_network_has_this_ones_layers() -> None:
    """Linear → ReLU → BatchNorm1d blocks of the same widths, and a plain last layer in each half."""
    layers = list(seed_network(bottleneck_size=2, n_layers=3))
    half = [nn.Linear, nn.ReLU, nn.BatchNorm1d] * 2 + [nn.Linear]
    assert [type(layer) for layer in layers] == half * 2
    widths = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert widths == [(784, 523), (523, 263), (263, 2), (2, 263), (263, 523), (523, 784)]


def test_the_floor_counts_every_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three products for each linear layer but the first, whose input has no gradient."""
    shapes: list[tuple[torch.Size, torch.Size]] = []

    class Counted(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.matmul or function is torch.Tensor.__matmul__:
                shapes.append((args[0].shape, args[1].shape))
            return super().__torch_function__(function, types, args, kwargs or {})

    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **kwargs: real(*size, **kwargs).as_subclass(Counted))
    throughput.seconds_of_matrix_products("float32", n_steps=1)
    assert len(shapes) == 10 * 3 - 1
    operations = sum(2 * a[0] * a[1] * b[1] for a, b in shapes)
    model = seed_network(throughput.BOTTLENECK_SIZE, throughput.N_LAYERS)
    weights = [layer.weight.numel() for layer in model if isinstance(layer, nn.Linear)]
    assert operations == 2 * 256 * (3 * sum(weights) - weights[0])


class Products(TorchDispatchMode):
    """The types of the operands of the matrix products inside."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in func.__name__:
            self.types |= {tensor.dtype for tensor in args}
        return func(*args, **(kwargs or {}))


def test_bfloat16_is_emulated_as_it_is_computed() -> None:
    """Products in float32, forward and backward; gradients within two roundings of PyTorch's own bfloat16."""
    model = AutoEncoder(Architecture.from_params(small_params().model))
    images = torch.from_numpy(random_split(64).pixels())
    gradients, types = [], []
    for emulation in (EmulatedBfloat16(), nullcontext()):
        with Products() as products, emulation:
            with torch.autocast("cpu", torch.bfloat16):
                loss = torch.nn.functional.mse_loss(model(images), images)
            model.zero_grad()
            loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        types.append(products.types)
    assert types == [{torch.float32}, {torch.bfloat16}]
    assert (gradients[0] - gradients[1]).norm() <= 2**-7 * gradients[1].norm()


def test_the_recipes_changes_are_parameters() -> None:
    """Each is valid, and changes what it says."""
    committed = load_params(PROJECT / "params.yaml")
    for changes in recipe.CHANGES:
        flat = recipe.changed(committed, recipe.BASE | changes).flat()
        assert (recipe.BASE | changes).items() <= flat.items()
    rows = measured("recipe")["rows"]
    assert len(rows) == len(recipe.CHANGES)
    for row, changes in zip(rows, recipe.CHANGES, strict=True):
        assert all(f"`{key}={value}`" in row["changes"] for key, value in changes.items())


def test_the_page_is_that_of_the_measurements() -> None:
    """reports/benchmarks/README.md is what `python -m benchmarks.table` makes of the JSON files."""
    assert (RESULTS / "README.md").read_text() == table.page(RESULTS)


def test_the_speed_was_measured_in_rounds() -> None:
    """As many of each loop as the benchmark has, and the hardware and versions beside them."""
    speed = json.loads((RESULTS / "throughput.json").read_text())
    assert {len(values["all"]) for values in speed["epoch_seconds"].values()} == {throughput.ROUNDS}
    assert {"hardware", "cpu_capability", "cores", "threads", "torch"} <= speed["machine"].keys()


def test_the_quality_was_measured_with_all_seeds() -> None:
    """The means are those of as many trainings as there are seeds, of both loops and for each bottleneck size."""
    rows = {row["bottleneck_size"]: row for row in measured("quality")["at_equal_epochs"]}
    assert tuple(rows) == quality.BOTTLENECK_SIZES
    for row in rows.values():
        for each in (row["original_test_mse"], row["ours_test_mse"]):
            assert len(set(each["all"])) == len(quality.SEEDS)
            assert each["mean"] == pytest.approx(statistics.mean(each["all"]), abs=1e-5)
        change = 100 * (row["ours_test_mse"]["mean"] / row["original_test_mse"]["mean"] - 1)
        assert row["change_percent"] == pytest.approx(change, abs=0.1)


def test_the_time_to_quality_is_that_of_the_listed_experiments() -> None:
    """The recorded trainings are those that `benchmarks.time_to_quality` runs now, each with all of its seeds."""
    for row, (shape, changes, seeds) in zip(measured("time_to_quality")["rows"], EXPERIMENTS, strict=True):
        assert {name: row[name] for name in shape} == shape
        assert row["changes"] == changes
        assert len(row["our_seconds"]["all"]) == len(row["original_seconds"]["all"]) == len(seeds)
        assert row["reached"] == [
            ours <= original for ours, original in zip(row["our_valid_mse"], row["original_valid_mse"], strict=True)
        ]


def test_what_a_sweep_costs_is_what_was_measured() -> None:
    """docs/ray.md has the numbers of reports/benchmarks/sweep.json."""
    result = json.loads((RESULTS / "sweep.json").read_text())
    said = " ".join((PROJECT / "docs/ray.md").read_text().split())
    for workers in map(str, sweep.WORKERS):
        hourly = result["points_per_hour"][workers]
        assert f"| {workers} | {hourly['threads']} | {hourly['points_per_hour']:.0f} |" in said
    ray, dvc, alone = (result["seconds"][engine]["further_point"] for engine in ("ray", "dvc", "one_process"))
    assert f"takes {alone:.1f} s in one process that calls the stages' functions, {ray:.1f} s on Ray" in said
    assert f"and {dvc:.1f} s as a DVC experiment" in said
    assert f"an engine costs {ray - alone:.1f} s (Ray) and {dvc - alone:.1f} s (DVC) a point" in said
    server, rates = result["tracking_server"], result["ray"]
    assert f"| {server['rows_written_per_second']:.1f} a second" in said
    assert f"| {rates['tasks_per_second']:,} a second" in said
    assert f"{rates['seconds_to_put']:.2f} s to put, {rates['seconds_to_fetch_on_another_node']:.2f} s to" in said
