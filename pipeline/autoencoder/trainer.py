"""The training loop: it takes tensors and parameters, and returns the best weights and a history.

It uses no path, no DVC and no MLflow, so it can be tested, timed and run wherever torch is installed.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.adamw import adamw

from pipeline.core.errors import PipelineError

if TYPE_CHECKING:
    from pipeline.params import TrainParams

# Maps a model and a batch of images [n, 784] to a scalar.
Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class EpochRecord:
    """One line of the history. The MSEs are means over images and pixels, with pixels in 0…1."""

    epoch: int  # from 1
    train_mse: float  # mean over the epoch's batches, each as it was trained on, so it lags valid_mse
    valid_mse: float  # after the epoch, in evaluation mode
    lr: float  # at the epoch's last step
    grad_norm: float  # L2 over all parameters, mean over the epoch's steps
    param_norm: float  # L2 over all parameters, after the epoch


@dataclass(frozen=True)
class FitResult:
    """The result of a training."""

    weights: dict[str, torch.Tensor]  # the state_dict with the lowest validation MSE, on the CPU
    best_epoch: int
    history: list[EpochRecord]


@dataclass(frozen=True)
class TrainingState:
    """Everything that later epochs depend on besides parameters and data, at the end of an epoch."""

    model: dict[str, torch.Tensor]  # the state_dict
    optimizer: dict[int, dict[str, torch.Tensor]]  # Adam's tensors for each parameter, by its number
    result: FitResult  # of the epochs so far


# The classes in a state, besides tensors and numbers.
STATE_TYPES = (TrainingState, FitResult, EpochRecord)


class Callback(Protocol):
    """Methods that `fit` calls during training. A subclass overrides those that it needs."""

    def on_batch(self, _n_images: int, /) -> None:
        """Called after each step, with its number of images."""
        return

    def on_epoch(self, _record: EpochRecord, _seconds: float, _state: TrainingState, /) -> None:
        """Called after each epoch, with the duration of its steps. The next epoch changes the state's tensors."""
        return


def reconstruction_loss(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the mean over images and pixels of (reconstruction − image)², a differentiable scalar."""
    return F.mse_loss(model(images), images)


def fit(
    model: nn.Module,
    train: torch.Tensor,
    valid: torch.Tensor,
    params: "TrainParams",
    callbacks: Sequence[Callback] = (),
    state: TrainingState | None = None,
    loss: Loss = reconstruction_loss,
) -> FitResult:
    """Minimise a loss with AdamW, and return the weights of the epoch with the lowest validation MSE.

    Resuming from any state that a callback received gives bit-identical results.

    Args:
        model: maps images [n, 784] to reconstructions [n, 784]. Its weights are changed. It is on the device to train
            on, like `train` and `valid`.
        train, valid: float32 [n, 784], pixels in 0…1.
        callbacks: called for each batch and epoch, in this order.
        state: the state to resume from. Its training had equal parameters and data. None starts from the model's
            weights.

    Raises:
        PipelineError: a loss is not finite; the message names the epoch.
    """
    n_steps, batch_size = steps_of_epoch(len(train), params.batch_size)
    step = TrainingStep(model, train, batch_size, params, loss)
    history: list[EpochRecord] = []
    best_mse, best_epoch, weights = math.inf, 0, {}
    if state is not None:
        model.load_state_dict(state.model)
        step.load_optimizer_state(state.optimizer)
        history = list(state.result.history)
        best_epoch, weights = state.result.best_epoch, state.result.weights
        best_mse = history[best_epoch - 1].valid_mse
    if train.is_cuda:
        step.capture()
    for epoch in range(len(history) + 1, params.n_epochs + 1):
        # Shuffle and dropout depend only on (seed, epoch), not on what ran before.
        torch.manual_seed(epoch_seed(params.seed, epoch))
        batches = torch.randperm(len(train))[: n_steps * batch_size].view(n_steps, batch_size).to(train.device)
        lr = 0.0
        model.train()
        started = time.perf_counter()
        for number, batch in enumerate(batches, start=(epoch - 1) * n_steps):
            lr = params.lr * SCHEDULES[params.schedule](number / (params.n_epochs * n_steps))
            step(batch, lr)
            for callback in callbacks:
                callback.on_batch(batch_size)
        train_mse, grad_norm = (total / n_steps for total in step.take_totals())  # waits for the device
        seconds = time.perf_counter() - started

        record = EpochRecord(
            epoch=epoch,
            train_mse=train_mse,
            valid_mse=reconstruction_mse(model, valid),
            lr=lr,
            grad_norm=grad_norm,
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
        state = TrainingState(model.state_dict(), step.optimizer_state(), result)
        for callback in callbacks:
            callback.on_epoch(record, seconds, state)
    return FitResult(weights, best_epoch, history)


def steps_of_epoch(n_images: int, batch_size: int) -> tuple[int, int]:
    """Return the number of steps and of images in each. All batches are whole; leftover images skip the epoch."""
    size = min(batch_size, n_images)
    return n_images // size, size


def one_cycle(progress: float) -> float:
    """Return the learning rate as a share of its peak, at `progress` 0…1: it rises until 0.3, then falls to zero.

    The shape is that of torch's OneCycleLR (L. N. Smith and N. Topin, "Super-Convergence", arXiv:1708.07120). As a
    function of the step it has no state to keep in a checkpoint.
    """
    rise, start = 0.3, 0.04
    if progress < rise:
        return start + (1 - start) * (1 - math.cos(math.pi * progress / rise)) / 2
    return (1 + math.cos(math.pi * (progress - rise) / (1 - rise))) / 2


SCHEDULES: dict[str, Callable[[float], float]] = {"one_cycle": one_cycle, "constant": lambda _: 1.0}


@dataclass(frozen=True)
class Moments:
    """Adam's tensors for one parameter, under torch's names."""

    step: torch.Tensor  # the number of steps so far, float32 []
    exp_avg: torch.Tensor  # the running mean of the gradients, in the parameter's shape
    exp_avg_sq: torch.Tensor  # the running mean of the squared gradients

    @classmethod
    def of(cls, parameter: torch.Tensor) -> "Moments":
        """Return the initial tensors: zeros."""
        step = torch.zeros((), device=parameter.device)
        return cls(step, torch.zeros_like(parameter), torch.zeros_like(parameter))


class TrainingStep:
    """One step of AdamW that never waits for the device, branches on no computed value and changes no shape.

    A GPU can replay it as one CUDA graph, instead of waiting for Python to launch more than a hundred kernels.
    """

    def __init__(
        self,
        model: nn.Module,
        train: torch.Tensor,
        batch_size: int,
        params: "TrainParams",
        loss: Loss = reconstruction_loss,
    ):
        self._model = model
        self._train = train
        self._loss = loss
        precision = resolve_precision(params.precision, train.device)
        self._autocast = torch.autocast(train.device.type, precision, enabled=precision != torch.float32)
        self._beta2 = params.adam_beta2
        # Only matrices decay: biases and normalisation parameters set a scale that nothing else could restore.
        self._groups = [
            ([(p, Moments.of(p)) for p in model.parameters() if p.ndim > 1], params.weight_decay),
            ([(p, Moments.of(p)) for p in model.parameters() if p.ndim <= 1], 0.0),
        ]
        # A step reads and writes these tensors in place.
        self._batch = torch.zeros(batch_size, dtype=torch.int64, device=train.device)
        self._lr = torch.zeros((), device=train.device)
        self._totals = torch.zeros(2, device=train.device)  # sums of the losses and of the gradients' norms
        self._run: Callable[[], None] = self._train_on_batch

    def __call__(self, batch: torch.Tensor, lr: float) -> None:
        """Train on the images whose indices are in `batch`, int64 [batch_size]."""
        self._batch.copy_(batch)
        self._lr.fill_(lr)
        self._run()

    def _train_on_batch(self) -> None:
        pixels = self._train[self._batch]
        with self._autocast:
            loss = self._loss(self._model, pixels)
        self._model.zero_grad()
        loss.backward()
        self._update()
        grad_norm = l2_norm([p.grad for p in self._model.parameters() if p.grad is not None])
        self._totals += torch.stack([loss.detach(), grad_norm])

    @torch.no_grad()
    def _update(self) -> None:
        """Apply AdamW's function. Its class imports torch's compiler, which takes seconds at each start."""
        for group, weight_decay in self._groups:
            used = [(p, p.grad, moments) for p, moments in group if p.grad is not None]
            adamw(
                [p for p, _, _ in used],
                [grad for _, grad, _ in used],
                [moments.exp_avg for _, _, moments in used],
                [moments.exp_avg_sq for _, _, moments in used],
                [],
                [moments.step for _, _, moments in used],
                fused=True,
                capturable=self._train.is_cuda,
                amsgrad=False,
                beta1=0.9,
                beta2=self._beta2,
                lr=self._lr,
                weight_decay=weight_decay,
                eps=1e-8,
                maximize=False,
            )

    def capture(self) -> None:
        """Record the step as a CUDA graph, which each later call replays. Weights and optimizer do not change."""
        self._model.train()
        weights = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        optimizer = {
            number: {name: tensor.clone() for name, tensor in moments.items()}
            for number, moments in self.optimizer_state().items()
        }
        # Libraries initialise themselves in the first steps, so these must not be recorded.
        with torch.cuda.device(self._train.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._train_on_batch()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._train_on_batch()
        self._run = graph.replay
        # Restored in place, because the graph refers to the tensors by address.
        self._model.load_state_dict(weights)
        self.load_optimizer_state(optimizer)
        self._totals.zero_()

    def take_totals(self) -> list[float]:
        """Return the sums of the losses and of the gradients' L2 norms since the last call, and reset them."""
        totals = self._totals.tolist()
        self._totals.zero_()
        return totals

    def optimizer_state(self) -> dict[int, dict[str, torch.Tensor]]:
        """Return Adam's tensors for each parameter, by its number. They are not copies; the next step changes them."""
        return {number: vars(moments) for number, moments in enumerate(self._moments())}

    def load_optimizer_state(self, state: dict[int, dict[str, torch.Tensor]]) -> None:
        """Copy in the tensors that `optimizer_state` returned."""
        for number, moments in enumerate(self._moments()):
            for name, tensor in vars(moments).items():
                tensor.copy_(state[number][name])

    def _moments(self) -> list["Moments"]:
        return [moments for group, _ in self._groups for _, moments in group]


@torch.no_grad()
def reconstruction_mse(model: nn.Module, images: torch.Tensor, batch_size: int = 1024) -> float:
    """Return the mean over images [n, 784] and pixels of (reconstruction − image)², in evaluation mode."""
    model.eval()
    total = sum(F.mse_loss(model(batch), batch, reduction="sum").item() for batch in images.split(batch_size))
    return total / images.numel()


def epoch_seed(seed: int, epoch: int) -> int:
    """Return an independent 63-bit seed for each (seed, epoch)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "big") >> 1


def l2_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the L2 norm of all elements together, a scalar on the tensors' device."""
    return torch.nn.utils.get_total_norm(tensors)


def resolve_device(name: str) -> torch.device:
    """Return the device that `train.device` names; `auto` is the first CUDA GPU, else Apple's, else the CPU.

    Raises:
        PipelineError: this machine does not have the device.
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


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type of the training's matrix products; `auto` is bfloat16 if the device has instructions for it."""
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return PRECISIONS[name]


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 instructions. A processor without them takes hundreds of times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def make_deterministic(threads: int | None) -> None:
    """Make equal inputs give equal bits on this machine. The number of CPU threads affects bits too (None: all)."""
    # Same as torch.use_deterministic_algorithms(True), which imports torch's compiler and takes seconds at each start.
    torch.set_deterministic_debug_mode("error")
    # cuBLAS is deterministic only if its workspace has a fixed size, set before CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Filling new memory costs time and only helps code that reads memory before writing to it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if threads is not None:
        torch.set_num_threads(threads)
