"""What the project is measured against is what it says, and the page of figures is that of the measurements."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import table, throughput
from benchmarks.seed import seed_epoch, seed_network
from tests.helpers import PROJECT, random_split

RESULTS = PROJECT / "reports/benchmarks"


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


def test_the_page_is_that_of_the_measurements() -> None:
    """reports/benchmarks/README.md is what `python -m benchmarks.table` makes of the JSON files."""
    assert (RESULTS / "README.md").read_text() == table.page(RESULTS)


def test_the_speed_was_measured_in_rounds() -> None:
    """As many of each loop as the benchmark has, and the hardware and versions beside them."""
    speed = json.loads((RESULTS / "throughput.json").read_text())
    assert {len(values["all"]) for values in speed["epoch_seconds"].values()} == {throughput.ROUNDS}
    assert {"hardware", "cpu_capability", "cores", "threads", "torch"} <= speed["machine"].keys()
