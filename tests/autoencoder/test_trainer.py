"""Run the real training loop on little data."""

import copy
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F

from pipeline.autoencoder.model import Architecture, AutoEncoder
from pipeline.autoencoder.trainer import (
    PRECISIONS,
    EpochRecord,
    FitResult,
    TrainingState,
    TrainingStep,
    epoch_seed,
    fit,
    make_deterministic,
    one_cycle,
    reconstruction_mse,
    resolve_device,
    resolve_precision,
    steps_of_epoch,
)
from pipeline.core.errors import PipelineError
from tests.helpers import Calls, random_split, small_params

TRAIN = torch.from_numpy(random_split(130, seed=1).pixels())
VALID = torch.from_numpy(random_split(40, seed=2).pixels())


def train(**changes: Any) -> tuple[AutoEncoder, FitResult]:
    params = small_params(**changes)
    make_deterministic(2)
    torch.manual_seed(params.train.seed)
    model = AutoEncoder(Architecture.from_params(params.model))
    return model, fit(model, TRAIN, VALID, params.train)


def test_training_lowers_the_loss() -> None:
    """The training and validation MSE fall."""
    _, result = train(train__n_epochs=8)
    assert result.history[-1].train_mse < 0.7 * result.history[0].train_mse
    assert result.history[-1].valid_mse < result.history[0].valid_mse


def test_equal_seeds_give_equal_bits() -> None:
    """Equal seeds give bit-identical weights and history, also with dropout; another seed gives a different history."""
    _, first = train(model__regularizer="dropout")
    _, again = train(model__regularizer="dropout")
    _, other = train(model__regularizer="dropout", train__seed=1)
    assert first.history == again.history
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert first.history != other.history


def test_the_seed_decides_the_shuffle() -> None:
    """With equal initial weights and no dropout, another seed trains on the images in another order."""
    histories = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = AutoEncoder(Architecture.from_params(small_params().model))
        histories.append(fit(model, TRAIN, VALID, small_params(train__seed=seed).train).history)
    assert histories[0] == histories[1] != histories[2]


def test_an_epoch_depends_on_its_number_not_on_what_ran_before() -> None:
    """Shuffle and dropout are seeded from (seed, epoch), so drawing random numbers in between changes nothing."""
    params = small_params(model__regularizer="dropout")
    results = []
    for disturb in (False, True):
        torch.manual_seed(0)
        model = AutoEncoder(Architecture.from_params(params.model))
        results.append(
            fit(model, TRAIN, VALID, params.train, [Calls(on_epoch=lambda *_, d=disturb: d and torch.rand(7))])
        )
    assert results[0].history == results[1].history
    assert len({epoch_seed(seed, epoch) for seed in range(20) for epoch in range(20)}) == 400


def into(records: list[EpochRecord]) -> Calls:
    """Return a callback that collects the records."""
    return Calls(on_epoch=lambda record, _seconds, _state: records.append(record))


def copies_into(states: list[TrainingState]) -> Calls:
    """Return a callback that collects copies of the states at the end of each epoch."""
    return Calls(on_epoch=lambda _record, _seconds, state: states.append(copy.deepcopy(state)))


@pytest.mark.parametrize("regularizer", ["batch_norm", "dropout"])
def test_resuming_from_any_epoch_gives_the_same_bits(regularizer: str) -> None:
    """Resuming from any state gives bit-identical history, best epoch, weights and last state of the network."""
    params = small_params(train__n_epochs=12, train__lr=0.5, train__schedule="constant").train
    shape = Architecture.from_params(small_params(model__regularizer=regularizer).model)
    make_deterministic(2)
    states: list[TrainingState] = []
    torch.manual_seed(0)
    model = AutoEncoder(shape)
    whole = fit(model, TRAIN, VALID, params, [copies_into(states)])
    assert whole.best_epoch < 12  # otherwise the best weights would always be the latest ones
    assert [len(state.result.history) for state in states] == list(range(1, 13))
    for state in states[::3] + states[-1:]:
        torch.manual_seed(99)  # other initial weights, which must not matter
        other = AutoEncoder(shape)
        records: list[EpochRecord] = []
        resumed = fit(other, TRAIN, VALID, params, [into(records)], state)
        assert resumed.history == whole.history
        assert records == whole.history[len(state.result.history) :]
        assert resumed.best_epoch == whole.best_epoch
        assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_weights_are_those_of_the_best_validation_epoch() -> None:
    """The returned weights reproduce the lowest validation MSE of the history, not the last one."""
    _, result = train(train__n_epochs=12, train__lr=0.5, train__schedule="constant")
    best = min(result.history, key=lambda record: record.valid_mse)
    assert result.best_epoch == best.epoch
    assert best.epoch < 12  # with the last epoch as the best one, the test would prove nothing
    model = AutoEncoder(Architecture.from_params(small_params().model))
    model.load_state_dict(result.weights)
    assert reconstruction_mse(model, VALID) == best.valid_mse


def test_the_norms_in_the_history_are_those_computed_by_hand() -> None:
    """After one full-batch step, the norms of gradients and parameters equal those computed by hand."""
    params = small_params(train__n_epochs=1, train__batch_size=130)
    torch.manual_seed(0)
    model = AutoEncoder(Architecture.from_params(params.model))
    torch.manual_seed(0)
    twin = AutoEncoder(Architecture.from_params(params.model))
    F.mse_loss(twin(TRAIN), TRAIN).backward()
    expected = math.sqrt(sum(float((p.grad**2).sum()) for p in twin.parameters() if p.grad is not None))
    record = fit(model, TRAIN, VALID, params.train).history[0]
    assert record.grad_norm == pytest.approx(expected, rel=1e-4)
    norm = math.sqrt(sum(float((p.detach() ** 2).sum()) for p in model.parameters()))
    assert record.param_norm == pytest.approx(norm, rel=1e-5)


def test_callbacks_see_every_image_and_epoch() -> None:
    """on_batch counts the images of each epoch, and on_epoch receives each record once."""
    seen: list[int] = []
    records: list[EpochRecord] = []
    params = small_params(train__n_epochs=3)
    model = AutoEncoder(Architecture.from_params(params.model))
    result = fit(model, TRAIN, VALID, params.train, [Calls(on_batch=seen.append), into(records)])
    assert seen == [64, 64] * 3
    assert records == result.history


def test_all_batches_are_whole() -> None:
    """Leftover images skip the epoch, and a batch larger than the data holds all images."""
    assert steps_of_epoch(130, 64) == (2, 64)
    assert steps_of_epoch(128, 64) == (2, 64)
    assert steps_of_epoch(130, 1000) == (1, 130)


def test_every_image_is_trained_on() -> None:
    """Each epoch draws different images without repetition, and over all epochs every image is used."""
    drawn: list[torch.Tensor] = []

    class Watched(AutoEncoder):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            if self.training:
                drawn.append(pixels.clone())
            return super().forward(pixels)

    params = small_params(train__n_epochs=8)
    fit(Watched(Architecture.from_params(params.model)), TRAIN, VALID, params.train)
    epochs = [{row.numpy().tobytes() for batch in drawn[i : i + 2] for row in batch} for i in range(0, 16, 2)]
    assert all(len(epoch) == 128 for epoch in epochs)
    assert len(set().union(*epochs)) == 130


def test_the_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    """The rate follows torch's OneCycleLR, and the history holds the rate of each epoch's last step."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=1001, pct_start=0.3003, div_factor=25, cycle_momentum=False
    )
    for step in range(1000):
        assert one_cycle(step / 1000) == pytest.approx(schedule.get_last_lr()[0], abs=0.005), step
        optimizer.step()
        schedule.step()
    _, result = train(train__n_epochs=5, train__lr=0.01)
    assert [record.lr for record in result.history] == [0.01 * one_cycle((2 * epoch + 1) / 10) for epoch in range(5)]


def test_bfloat16_is_near_float32() -> None:
    """bfloat16 gives other bits but about the same result, keeps float32 weights and repeats bit-identically."""
    results = [train(train__n_epochs=6, train__precision=p)[1] for p in ("float32", "bfloat16", "bfloat16")]
    assert results[0].history != results[1].history
    assert results[1].history == results[2].history
    assert all(t.dtype == torch.float32 for name, t in results[1].weights.items() if "num_batches" not in name)
    assert results[1].history[-1].valid_mse == pytest.approx(results[0].history[-1].valid_mse, rel=0.03)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("regularizer", ["batch_norm", "dropout"])
def test_a_step_can_be_captured(precision: str, regularizer: str) -> None:
    """A step waits for no value: it runs on tensors without values, as a recording of a CUDA graph requires."""
    shape = Architecture.from_params(small_params(model__regularizer=regularizer).model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = TrainingStep(
            AutoEncoder(shape), torch.rand(130, 784), 64, small_params(train__precision=precision).train
        )
        for _ in range(2):
            step(torch.zeros(64, dtype=torch.int64), 0.01)
        with pytest.raises(DataDependentOutputException):
            step.take_totals()  # this one waits for values


class Recorded:
    """A stand-in for a CUDA graph on machines without a GPU. Replaying it runs the step again."""

    def __init__(self) -> None:
        self.replays = 0
        self.step: Callable[[], None] = lambda: None

    def replay(self) -> None:
        self.replays += 1
        self.step()


@pytest.mark.parametrize("steps_before", [0, 3])
def test_capturing_changes_no_bits(monkeypatch: pytest.MonkeyPatch, steps_before: int) -> None:
    """Warm-up and recording change neither weights nor optimizer, both at the start and in mid-training."""
    recorded = Recorded()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: recorded)
    for name in ("device", "Stream", "stream", "current_stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    shape = Architecture.from_params(small_params().model)
    make_deterministic(2)
    after: list[dict[str, torch.Tensor]] = []
    totals: list[list[float]] = []
    for captured in (False, True):
        torch.manual_seed(0)
        model = AutoEncoder(shape)
        step = TrainingStep(model, TRAIN, 64, small_params().train)
        recorded.step = step._train_on_batch
        for number in range(steps_before):
            step(torch.arange(64) + number, 0.01)
        if steps_before:
            step.take_totals()
        if captured:
            addresses = [tensor.data_ptr() for tensor in model.state_dict().values()]
            step.capture()
            assert [tensor.data_ptr() for tensor in model.state_dict().values()] == addresses
        for number in range(4):
            step(torch.arange(64) + 10 * number, 0.01)
        totals.append(step.take_totals())
        after.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert recorded.replays == 4
    assert totals[0] == totals[1]
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("regularizer", ["batch_norm", "dropout"])
def test_a_gpu_repeats_its_bits_and_agrees_with_the_cpu(regularizer: str) -> None:
    """A captured training repeats and resumes bit-identically; with batch norm it agrees with the CPU's result."""
    make_deterministic(2)
    params = small_params(model__regularizer=regularizer, train__n_epochs=4)
    shape = Architecture.from_params(params.model)
    states: list[TrainingState] = []

    def trained(device: str, state: TrainingState | None = None) -> FitResult:
        torch.manual_seed(0)
        model = AutoEncoder(shape).to(device)
        return fit(
            model,
            TRAIN.to(device),
            VALID.to(device),
            params.train,
            [copies_into(states)],
            state,
        )

    first = trained("cuda")
    assert trained("cuda").history == first.history
    assert trained("cuda", states[1]).history == first.history
    if regularizer == "batch_norm":
        assert trained("cpu").history[-1].valid_mse == pytest.approx(first.history[-1].valid_mse, rel=0.02)


def test_a_loss_that_is_not_finite_ends_training() -> None:
    """Training ends at once with an error that names the epoch and a remedy."""
    with pytest.raises(PipelineError, match=r"the loss is not finite in epoch 1 .*try a smaller train\.lr"):
        train(train__lr=1e30)


@pytest.mark.parametrize("name", ["cuda:99", "cuda", "mps"])
def test_a_missing_device_is_an_error(name: str) -> None:
    """The error names the requested device and the available ones."""
    if name != "cuda:99" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("this machine has such a device")
    with pytest.raises(PipelineError, match=rf"train\.device: {name} is not on this machine, which has cpu"):
        resolve_device(name)


def test_a_constant_rate() -> None:
    """With train.schedule=constant every epoch uses train.lr."""
    _, result = train(train__n_epochs=3, train__lr=0.01, train__schedule="constant")
    assert [record.lr for record in result.history] == [0.01] * 3


def test_weight_decay_is_decoupled_and_spares_biases() -> None:
    """A matrix with zero gradient shrinks by rate × decay in each step, as in AdamW, and biases do not shrink."""
    layer, zero = torch.nn.Linear(784, 784), torch.nn.Linear(784, 784)
    for parameter in zero.parameters():
        torch.nn.init.zeros_(parameter).requires_grad_(False)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    model = torch.nn.Sequential(layer, zero)  # the gradient through `zero` is zero
    step = TrainingStep(model, torch.zeros(64, 784), 64, small_params(train__weight_decay=0.5).train)
    for _ in range(2):
        step(torch.arange(64), 0.1)
    torch.testing.assert_close(layer.weight.detach(), weight * (1 - 0.1 * 0.5) ** 2)
    torch.testing.assert_close(layer.bias.detach(), bias)


@pytest.mark.parametrize("beta2", [0.5, 0.999])
def test_the_optimizer_is_adam_with_that_beta(beta2: float) -> None:
    """Three steps without decay equal those of torch's Adam."""
    params = small_params(train__weight_decay=0.0, train__adam_beta2=beta2).train
    model, twin = torch.nn.Linear(784, 784), torch.nn.Linear(784, 784)
    twin.load_state_dict(model.state_dict())
    step, optimizer = TrainingStep(model, TRAIN, 64, params), torch.optim.Adam(twin.parameters(), 0.01, (0.9, beta2))
    for number in range(3):
        batch = torch.arange(number, number + 64)
        step(batch, 0.01)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(twin(TRAIN[batch]), TRAIN[batch]).backward()
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


def test_training_starts_without_torchs_compiler() -> None:
    """Training does not import torch's compiler, which takes seconds at each start."""
    code = "import sys; from tests.autoencoder.test_trainer import train; train()\n"
    code += "assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_precision_is_bfloat16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` depends on the processor's instructions, and an explicit precision is used unchanged."""
    cpu = torch.device("cpu")
    assert {"avx512_bf16", "amx_bf16"} <= torch.cpu.get_capabilities().keys() or platform.machine() != "x86_64"
    for capabilities, expected in [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"architecture": "another"}, torch.float32),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert resolve_precision("auto", cpu) is expected
        assert resolve_precision("float32", cpu) is torch.float32
        assert resolve_precision("bfloat16", cpu) is torch.bfloat16


def test_auto_chooses_an_existing_device() -> None:
    """`auto` chooses a device that exists, and `cpu` always exists."""
    assert resolve_device("cpu") == torch.device("cpu")
    torch.zeros(1, device=resolve_device("auto"))
