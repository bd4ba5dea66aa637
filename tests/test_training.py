"""The training loop, run for real on little data."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pipeline.errors import PipelineError
from pipeline.model import Architecture, AutoEncoder
from pipeline.training import (
    EpochRecord,
    FitResult,
    TrainingState,
    epoch_seed,
    fit,
    make_deterministic,
    reconstruction_mse,
    resolve_device,
)
from tests.helpers import random_split, small_params

TRAIN = torch.from_numpy(random_split(130, seed=1).pixels())
VALID = torch.from_numpy(random_split(40, seed=2).pixels())


def train(**changes: Any) -> tuple[AutoEncoder, FitResult]:
    params = small_params(**changes)
    make_deterministic(2)
    torch.manual_seed(params.train.seed)
    model = AutoEncoder(Architecture.from_params(params.model))
    return model, fit(model, TRAIN, VALID, params.train)


def test_training_lowers_the_loss() -> None:
    """On images it can learn, the training and validation MSE fall."""
    _, result = train(train__n_epochs=8)
    assert result.history[-1].train_mse < 0.7 * result.history[0].train_mse
    assert result.history[-1].valid_mse < result.history[0].valid_mse


def test_equal_seeds_give_equal_bits() -> None:
    """The seed decides weights and history to the bit; another seed gives others. Dropout included."""
    _, first = train(model__regularizer="dropout")
    _, again = train(model__regularizer="dropout")
    _, other = train(model__regularizer="dropout", train__seed=1)
    assert first.history == again.history
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert first.history != other.history


def test_an_epoch_depends_on_its_number_not_on_what_ran_before() -> None:
    """Shuffle and dropout are seeded from (seed, epoch): drawing random numbers between changes nothing."""
    params = small_params(model__regularizer="dropout")
    results = []
    for disturb in (False, True):
        torch.manual_seed(0)
        model = AutoEncoder(Architecture.from_params(params.model))
        results.append(fit(model, TRAIN, VALID, params.train, on_epoch=lambda *_, d=disturb: d and torch.rand(7)))
    assert results[0].history == results[1].history
    assert len({epoch_seed(seed, epoch) for seed in range(20) for epoch in range(20)}) == 400


def told_to(records: list[EpochRecord]) -> Callable[[EpochRecord, float], None]:
    return lambda record, _: records.append(record)


@pytest.mark.parametrize("regularizer", ["batch_norm", "dropout"])
def test_going_on_from_any_epoch_gives_the_same_bits(regularizer: str) -> None:
    """From every state that fit tells: history, best epoch, weights and the network's last state, to the bit."""
    params = small_params(model__regularizer=regularizer, train__n_epochs=12, train__lr=0.05).train
    shape = Architecture.from_params(small_params(model__regularizer=regularizer).model)
    make_deterministic(2)
    states: list[TrainingState] = []
    torch.manual_seed(0)
    model = AutoEncoder(shape)
    whole = fit(model, TRAIN, VALID, params, on_state=lambda state: states.append(copy.deepcopy(state)))
    assert whole.best_epoch < 12  # else the best weights would always be the newest ones
    assert [len(state.result.history) for state in states] == list(range(1, 13))
    for state in states[::3] + states[-1:]:
        torch.manual_seed(99)  # other initial weights, which must not matter
        other = AutoEncoder(shape)
        records: list[EpochRecord] = []
        resumed = fit(other, TRAIN, VALID, params, on_epoch=told_to(records), state=state)
        assert resumed.history == whole.history
        assert records == whole.history[len(state.result.history) :]
        assert resumed.best_epoch == whole.best_epoch
        assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_the_weights_are_those_of_the_best_validation_epoch() -> None:
    """What fit returns reproduces the lowest validation MSE of the history, not the last one."""
    _, result = train(train__n_epochs=12, train__lr=0.05)
    best = min(result.history, key=lambda record: record.valid_mse)
    assert result.best_epoch == best.epoch
    assert best.epoch < 12  # with this rate the last epoch is not the best: the test would prove nothing
    model = AutoEncoder(Architecture.from_params(small_params().model))
    model.load_state_dict(result.weights)
    assert reconstruction_mse(model, VALID) == best.valid_mse


def test_history_holds_what_it_says() -> None:
    """One record an epoch; the norms of one full-batch step are those computed by hand."""
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
    assert record.lr == params.train.lr


def test_callers_see_every_image_and_epoch() -> None:
    """on_batch adds up to the images of each epoch, on_epoch brings each record once."""
    seen: list[int] = []
    records: list[EpochRecord] = []
    params = small_params(train__n_epochs=3)
    model = AutoEncoder(Architecture.from_params(params.model))
    result = fit(model, TRAIN, VALID, params.train, seen.append, lambda record, seconds: records.append(record))
    assert seen == [64, 64, 2] * 3
    assert records == result.history


def test_a_last_batch_of_one_sits_out() -> None:
    """Batch normalisation cannot train on one image; the epoch goes on without it."""
    params = small_params(train__n_epochs=1, train__batch_size=129)
    seen: list[int] = []
    fit(AutoEncoder(Architecture.from_params(params.model)), TRAIN, VALID, params.train, seen.append)
    assert seen == [129]


def test_a_loss_that_is_not_finite() -> None:
    """Training ends at once with the epoch and what to try."""
    with pytest.raises(PipelineError, match=r"the loss is not finite in epoch 1 .*try a smaller train\.lr"):
        train(train__lr=1e30)


@pytest.mark.parametrize("name", ["cuda:99", "cuda", "mps"])
def test_a_device_that_does_not_exist(name: str) -> None:
    """The error names the device asked for and those that are there."""
    if name != "cuda:99" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("this machine has such a device")
    with pytest.raises(PipelineError, match=rf"train\.device: {name} is not on this machine, which has cpu"):
        resolve_device(name)


def test_auto_takes_what_is_there() -> None:
    """`auto` chooses a device that exists, `cpu` is always one."""
    assert resolve_device("cpu") == torch.device("cpu")
    torch.zeros(1, device=resolve_device("auto"))
