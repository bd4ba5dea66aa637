"""The training loop: tensors and parameters in, the best weights and a history out.

It knows no path, no DVC and no MLflow, so that it can be tested, timed and run wherever torch is.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from pipeline.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.model import AutoEncoder
    from pipeline.params import TrainParams


@dataclass(frozen=True)
class EpochRecord:
    """One line of the history. The MSEs are means over images and pixels, pixels in 0…1."""

    epoch: int  # from 1
    train_mse: float  # mean over the epoch's batches as they were trained on, so it lags valid_mse
    valid_mse: float  # after the epoch, in evaluation mode
    lr: float
    grad_norm: float  # L2 over all parameters, mean over the epoch's steps
    param_norm: float  # L2 over all parameters, after the epoch


@dataclass(frozen=True)
class FitResult:
    """What training leaves behind."""

    weights: dict[str, torch.Tensor]  # the state_dict with the lowest validation MSE, on the CPU
    best_epoch: int
    history: list[EpochRecord]


@dataclass(frozen=True)
class TrainingState:
    """All that the epochs to come depend on, parameters and data aside, after a whole epoch."""

    model: dict[str, torch.Tensor]  # the state_dict
    optimizer: dict[int, dict[str, torch.Tensor]]  # what Adam keeps for each parameter, by its number
    result: FitResult  # of the epochs so far


def fit(
    model: "AutoEncoder",
    train: torch.Tensor,
    valid: torch.Tensor,
    params: "TrainParams",
    on_batch: Callable[[int], object] = lambda _: None,
    on_epoch: Callable[[EpochRecord, float], object] = lambda *_: None,
    on_state: Callable[[TrainingState], object] = lambda _: None,
    state: TrainingState | None = None,
) -> FitResult:
    """Minimise the reconstruction MSE with Adam; keep the weights of the best validation epoch.

    Started from any of the states that it tells, it returns the very bits that it would have returned.

    Args:
        model: on the device to train on, as are `train` and `valid`; its weights are changed.
        train, valid: float32 [n, 784], pixels in 0…1.
        on_batch: told the number of images after each step.
        on_epoch: told each record and the seconds that the epoch's training steps took.
        on_state: told the state after each epoch, before the epoch is told. Its tensors change with the next step.
        state: to go on from, of a training with equal parameters and data; else it starts anew.

    Raises:
        PipelineError: a loss is not finite; the message names the epoch.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=params.lr, fused=True)
    history: list[EpochRecord] = []
    best_mse, best_epoch, weights = math.inf, 0, {}
    if state is not None:
        model.load_state_dict(state.model)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state.optimizer})
        history = list(state.result.history)
        best_epoch, weights = state.result.best_epoch, state.result.weights
        best_mse = history[best_epoch - 1].valid_mse
    for epoch in range(len(history) + 1, params.n_epochs + 1):
        # Shuffle and dropout depend on (seed, epoch) alone, whatever ran before.
        torch.manual_seed(epoch_seed(params.seed, epoch))
        order = torch.randperm(len(train)).to(train.device)
        squared_error = torch.zeros((), device=train.device)
        grad_norm = torch.zeros((), device=train.device)
        model.train()
        started = time.perf_counter()
        # Batch normalisation needs two images: a last batch of one sits this epoch out.
        batches = [batch for batch in order.split(params.batch_size) if len(batch) > 1]
        for batch in batches:
            pixels = train[batch]
            loss = F.mse_loss(model(pixels), pixels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            squared_error += loss.detach() * len(batch)
            grad_norm += l2_norm([p.grad for p in model.parameters() if p.grad is not None])
            on_batch(len(batch))
        train_mse = squared_error.item() / sum(map(len, batches))  # .item() waits for the device
        seconds = time.perf_counter() - started

        record = EpochRecord(
            epoch=epoch,
            train_mse=train_mse,
            valid_mse=reconstruction_mse(model, valid),
            lr=params.lr,
            grad_norm=grad_norm.item() / len(batches),
            param_norm=l2_norm([p.detach() for p in model.parameters()]).item(),
        )
        if not (math.isfinite(record.train_mse) and math.isfinite(record.valid_mse)):
            raise PipelineError(
                f"the loss is not finite in epoch {epoch} (train {record.train_mse}, validation "
                f"{record.valid_mse}); try a smaller train.lr (it is {params.lr}) or a larger train.batch_size"
            )
        history.append(record)
        if record.valid_mse < best_mse:
            best_mse, best_epoch = record.valid_mse, epoch
            weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        result = FitResult(weights, best_epoch, list(history))
        on_state(TrainingState(model.state_dict(), optimizer.state_dict()["state"], result))
        on_epoch(record, seconds)
    return FitResult(weights, best_epoch, history)


@torch.no_grad()
def reconstruction_mse(model: "AutoEncoder", images: torch.Tensor, batch_size: int = 4096) -> float:
    """Mean over images and pixels of (reconstruction − image)², in evaluation mode; images [n, 784]."""
    model.eval()
    total = sum(F.mse_loss(model(batch), batch, reduction="sum").item() for batch in images.split(batch_size))
    return total / images.numel()


def epoch_seed(seed: int, epoch: int) -> int:
    """An independent 63-bit seed for each (seed, epoch)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "big") >> 1


def l2_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of all elements together, a scalar on the tensors' device."""
    return torch.nn.utils.get_total_norm(tensors)


def resolve_device(name: str) -> torch.device:
    """The device that `train.device` names; `auto` is the first CUDA GPU, else Apple's, else the CPU.

    Raises:
        PipelineError: it does not exist on this machine.
    """
    n_gpus = torch.cuda.device_count()
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda:0" if n_gpus else "mps" if has_mps else "cpu")
    device = torch.device(name)
    exists = {"cpu": True, "cuda": (device.index or 0) < n_gpus, "mps": has_mps}[device.type]
    if not exists:
        here = ["cpu", *(f"cuda:{index}" for index in range(n_gpus)), *(["mps"] if has_mps else [])]
        raise PipelineError(f"train.device: {name} is not on this machine, which has {', '.join(here)}")
    return device


def make_deterministic(threads: int | None) -> None:
    """Make equal inputs give equal bits on this machine. `threads` of the CPU decide bits too (None: all)."""
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory only serves code that reads what it never wrote, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if threads is not None:
        torch.set_num_threads(threads)
