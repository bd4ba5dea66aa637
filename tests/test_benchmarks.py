"""The reference implementations match their descriptions, and the pages quote the measurements."""

import copy
import json
import re
import statistics
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from benchmarks import frameworks, quality, recipe, sweep, table, throughput
from benchmarks.quality import EmulatedBfloat16
from benchmarks.seed import REFERENCES, original_epoch, original_network, our_layers
from benchmarks.time_to_quality import EXPERIMENTS
from pipeline.autoencoder.model import Architecture, AutoEncoder
from pipeline.autoencoder.trainer import epoch_seed, fit
from pipeline.params import load_params
from tests.helpers import PROJECT, random_split, small_params

RESULTS = PROJECT / "reports/benchmarks"


def measured(name: str) -> dict[str, Any]:
    """Return a benchmark's result, or skip the test if there is none."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"benchmarks.{name} was not measured")
    return json.loads(path.read_text())


def test_the_original_loop_trains_as_a_plain_one() -> None:
    """For 20 steps its losses equal those of a DataLoader, nn.MSELoss and Adam's textbook step."""
    images = torch.from_numpy(random_split(20 * 256).pixels())
    torch.manual_seed(0)
    model = our_layers(bottleneck_size=10, n_layers=2)
    twin = copy.deepcopy(model).train()
    torch.manual_seed(1)
    losses = list(original_epoch(model, torch.optim.Adam(model.parameters()), images))
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
    """With the parameters of the command in docs/parameters.md, `fit` trains like the original's loop."""
    (command,) = re.findall(
        r"^dvc exp run .*constant.*\\\n.*$", (PROJECT / "docs/parameters.md").read_text(), re.MULTILINE
    )
    changes = {key.replace(".", "__"): yaml.safe_load(value) for key, value in re.findall(r"-S (\S+)=(\S+)", command)}
    params = small_params(**changes | {"model__n_layers": 3}, train__batch_size=256, train__n_epochs=2)
    images = torch.from_numpy(random_split(4 * 256).pixels())
    model = AutoEncoder(Architecture.from_params(params.model))
    original = our_layers(params.model.bottleneck_size, 3)
    for ours, theirs in zip(model.state_dict().values(), original.state_dict().values(), strict=True):
        theirs.copy_(ours)
    optimizer = torch.optim.Adam(original.parameters())
    losses = []
    for epoch in (1, 2):
        torch.manual_seed(epoch_seed(params.train.seed, epoch))
        losses.append(statistics.mean(original_epoch(original, optimizer, images)))
    history = fit(model, images, images, params.train).history
    assert [record.train_mse for record in history] == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize(
    ("bottleneck_size", "n_layers", "encoder", "decoder", "n_parameters"),
    [
        (10, 5, [784, 474, 319, 164, 10], [10, 474, 629, 784], 1_379_774),
        (2, 10, [784, 627, 549, 471, 393, 314, 236, 158, 80, 2], [2, 627, 705, 784], 2_536_342),
        (10, 10, [784, 629, 551, 474, 397, 319, 242, 164, 87, 10], [10, 629, 706, 784], 2_564_990),
    ],
)
def test_the_unmodified_original_has_its_own_layers(
    bottleneck_size: int, n_layers: int, encoder: list[int], decoder: list[int], n_parameters: int
) -> None:
    """The original's encoder skips the first hidden width, and its decoder has only the first two."""
    model = original_network(bottleneck_size, n_layers)
    blocks = [[nn.Linear, nn.ReLU, nn.BatchNorm1d] * (len(half) - 2) + [nn.Linear] for half in (encoder, decoder)]
    assert [type(layer) for layer in model] == blocks[0] + blocks[1]
    linear = [(layer.in_features, layer.out_features) for layer in model if isinstance(layer, nn.Linear)]
    assert linear == [*pairwise(encoder), *pairwise(decoder)]
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters
    assert model(torch.rand(2, 784)).shape == (2, 784)


def test_the_page_describes_the_networks() -> None:
    """benchmarks/README.md has the numbers of layers and parameters of both references in both experiments."""
    page = (PROJECT / "benchmarks/README.md").read_text()
    for name, network in REFERENCES.items():
        cells = []
        for bottleneck_size, n_layers in ((10, 5), (2, 10)):
            model = network(bottleneck_size, n_layers)
            linear = [layer for layer in model if isinstance(layer, nn.Linear)]
            encoder = [layer.out_features for layer in linear].index(bottleneck_size) + 1
            millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            cells.append(f"{encoder} + {len(linear) - encoder}, {millions:.2f} million")
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {table.NAMES[name]} |")]
        assert row.endswith(f"| {' | '.join(cells)} |")


def test_the_second_reference_has_this_projects_layers() -> None:
    """Its weights have AutoEncoder's order and shapes, and in training it computes the same."""
    network = our_layers(bottleneck_size=10, n_layers=5)
    model = throughput.our_network()
    for ours, theirs in zip(model.state_dict().values(), network.state_dict().values(), strict=True):
        theirs.copy_(ours)
    images = torch.from_numpy(random_split(8).pixels())
    assert torch.equal(network(images), model(images))
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_005_146


@pytest.mark.parametrize("name", frameworks.EPOCH_SECONDS)
def test_a_framework_trains_an_epoch(name: str) -> None:
    """Each installed framework trains all weights, in one step for each batch of 256."""
    if name not in frameworks.installed():
        pytest.skip(f"{name} is optional and not installed")
    model = throughput.our_network()
    before = copy.deepcopy(model.state_dict())
    assert frameworks.EPOCH_SECONDS[name](model, torch.from_numpy(random_split(3 * 256).pixels())) > 0
    after = model.state_dict()
    assert not any(torch.equal(before[key], after[key]) for key in before if key.endswith("weight"))
    steps = {"lightning": 3, "pythae": 4}[name]  # pythae first computes one batch to check the network
    assert after["encoder.2.num_batches_tracked"] == steps


def test_the_gpu_benchmark_needs_few_packages() -> None:
    """benchmarks.cuda imports no torchvision, MLflow, DVC, pandas, scikit-learn, matplotlib, lightning or pythae."""
    unwanted = ["torchvision", "mlflow", "dvc", "pandas", "sklearn", "matplotlib", "lightning", "pythae"]
    code = f"import sys, benchmarks.cuda; print(sorted(set({unwanted}) & sys.modules.keys()))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"


def test_the_floor_counts_every_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor has three products for each linear layer, and two for the first, whose input has no gradient."""
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
    model = our_layers(throughput.BOTTLENECK_SIZE, throughput.N_LAYERS)
    weights = [layer.weight.numel() for layer in model if isinstance(layer, nn.Linear)]
    assert operations == 2 * 256 * (3 * sum(weights) - weights[0])


class Products(TorchDispatchMode):
    """Collects the operand types of the matrix products inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "mm" in func.__name__:
            self.types |= {tensor.dtype for tensor in args}
        return func(*args, **(kwargs or {}))


def test_emulated_bfloat16_is_near_the_real_one() -> None:
    """Emulated products are float32, forward and backward; gradients are within two roundings of PyTorch's bfloat16."""
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
    """Each of the recipe's changes is valid and changes the named parameters, and the results list it."""
    committed = load_params(PROJECT / "params.yaml")
    for changes in recipe.CHANGES:
        flat = recipe.changed(committed, recipe.BASE | changes).flat()
        assert (recipe.BASE | changes).items() <= flat.items()
    rows = measured("recipe")["rows"]
    assert len(rows) == len(recipe.CHANGES)
    for row, changes in zip(rows, recipe.CHANGES, strict=True):
        assert all(f"`{key}={value}`" in row["changes"] for key, value in changes.items())


def test_the_page_is_made_from_the_measurements() -> None:
    """reports/benchmarks/README.md is the output of `python -m benchmarks.table` for the JSON files."""
    assert (RESULTS / "README.md").read_text() == table.page(RESULTS)


def test_the_speed_was_measured_in_rounds() -> None:
    """Every loop, both references included, has one value per round, and hardware and versions are recorded."""
    speed = json.loads((RESULTS / "throughput.json").read_text())
    assert {*REFERENCES, "dataloader", "float32"} | speed["frameworks"].keys() <= speed["epoch_seconds"].keys()
    assert {len(values["all"]) for values in speed["epoch_seconds"].values()} == {throughput.ROUNDS}
    assert {"hardware", "cpu_capability", "cores", "threads", "torch"} <= speed["machine"].keys()


def test_the_quality_was_measured_with_all_seeds() -> None:
    """For each bottleneck size, both references and this project have one training per seed, and their mean."""
    rows = {row["bottleneck_size"]: row for row in measured("quality")["at_equal_epochs"]}
    assert tuple(rows) == quality.BOTTLENECK_SIZES
    for row in rows.values():
        values = {key: each for key, each in row.items() if key.endswith("_test_mse")}
        assert values.keys() == {f"{name}_test_mse" for name in (*REFERENCES, "ours")}
        for each in values.values():
            assert len(set(each["all"])) == len(quality.SEEDS)
            assert each["mean"] == pytest.approx(statistics.mean(each["all"]), abs=1e-5)


def test_the_time_to_quality_is_that_of_the_listed_experiments() -> None:
    """The recorded trainings are those that `benchmarks.time_to_quality` runs now, each with all its seeds."""
    for row, (shape, changes, seeds) in zip(measured("time_to_quality")["rows"], EXPERIMENTS, strict=True):
        assert {name: row[name] for name in shape} == shape
        assert row["changes"] == changes
        for name in (*REFERENCES, "ours"):
            clocks = [row[name][clock]["all"] for clock in ("seconds", "processor_seconds")]
            for values in (row[name]["valid_mse"], *clocks):
                assert len(values) == len(seeds)


def test_the_docs_quote_the_measured_cost_of_a_sweep() -> None:
    """docs/ray.md has the numbers of reports/benchmarks/sweep.json."""
    result = json.loads((RESULTS / "sweep.json").read_text())
    said = " ".join((PROJECT / "docs/ray.md").read_text().split())
    for workers in map(str, sweep.WORKERS):
        hourly = result["trials_per_hour"][workers]
        assert f"| {workers} | {hourly['threads']} | {hourly['trials_per_hour']:.0f} |" in said
    ray, dvc, alone = (result["seconds"][engine]["further_trial"] for engine in ("ray", "dvc", "one_process"))
    assert f"takes {alone:.1f} s in one process that calls the stages' functions, {ray:.1f} s on Ray" in said
    assert f"and {dvc:.1f} s as a DVC experiment" in said
    assert f"an engine costs {ray - alone:.1f} s (Ray) and {dvc - alone:.1f} s (DVC) a trial" in said
    server, rates = result["tracking_server"], result["ray"]
    assert f"| {server['rows_written_per_second']:.1f} a second" in said
    assert f"| {rates['tasks_per_second']:,} a second" in said
    assert f"{rates['seconds_to_put']:.2f} s to put, {rates['seconds_to_fetch_on_another_node']:.2f} s to" in said
