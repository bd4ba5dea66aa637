"""The context of one training: checkpoints, MLflow run and progress display."""

import io
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.core import dvcfiles
from pipeline.core.checkpoint import Checkpointer
from pipeline.core.environment import record as record_environment
from pipeline.core.errors import PipelineError, on_one_line
from pipeline.core.repository import CHECKPOINTS, main_root
from pipeline.experiment import EXPERIMENT
from pipeline.tracking.fingerprints import training_hash
from pipeline.tracking.progress import TrainingProgress
from pipeline.tracking.runs import Resumed, TrainingRun, training_run

if TYPE_CHECKING:
    from pipeline.params import Params


class Training:
    """A callback of the training loop for batches and epochs."""

    def __init__(
        self,
        state: Any | None,
        epochs: list[dict[str, Any]],
        save: "Callable[[Any, list[dict[str, Any]]], None]",
        run: TrainingRun,
        progress: TrainingProgress,
    ):
        self.state = state  # the state from which the loop resumes, last passed to `on_epoch`; None: from scratch
        self._epochs, self._save, self._run, self._progress = epochs, save, run, progress

    def on_batch(self, n_examples: int) -> None:
        """Record a training step on `n_examples` examples."""
        self._progress.on_batch(n_examples)
        self._run.on_batch(n_examples)

    def on_epoch(self, record: Any, seconds: float, state: Any) -> None:
        """Record the end of an epoch.

        Args:
            record: a dataclass of numbers, one line of the history; `epoch` counts from 1.
            seconds: the duration of the epoch's training steps.
            state: everything except parameters and data that later epochs depend on.
        """
        self._epochs.append(asdict(record))
        # Save first, so that MLflow gets no epoch that a killed training has to repeat.
        self._save(state, self._epochs)
        self._run.on_epoch(record, seconds)
        self._progress.on_epoch(record, seconds)


@contextmanager
def training(
    params: "Params", device: str, *, n_epochs: int, n_examples: int, state_types: tuple[type, ...] = ()
) -> Iterator[Training]:
    """Train inside the block. The block must write the stage's outputs before it ends.

    A stopped training resumes from its last checkpoint, in its MLflow run, and produces the same bytes. It is
    identified by `training_hash`.

    Args:
        n_examples: the number of examples per epoch.
        state_types: the classes in the loop's state other than tensors, dicts, lists, numbers and strings. Loading a
            state refuses all other classes.

    Raises:
        PipelineError: the form does not fit the parameters or dvc.yaml.
    """
    EXPERIMENT.check(params.flat())
    checkpoint = Checkpointer(main_root() / CHECKPOINTS, training_hash(params, device), params.flat())
    with checkpoint.locked():
        saved = checkpoint.load()
        state, n_done = None, 0
        epochs: list[dict[str, Any]] = []
        if saved:
            try:
                state, epochs = unpack(saved.content, state_types)
                n_done = len(epochs)
                what = "finished, but DVC was stopped before it recorded that" if saved.is_finished else "stopped"
                print(f"resuming after epoch {n_done} of {n_epochs} of a training that was {what}")
            except pickle.UnpicklingError as error:
                problem = f"the checkpoint is not used, {reason_of(error)}; training starts from scratch"
                print(f"warning: {problem}", file=sys.stderr)
        continued = Resumed(saved.run, list(epochs)) if saved and n_done else None
        with training_run(params, device, continued) as run:

            def save(state: Any, epochs: list[dict[str, Any]]) -> None:
                if len(epochs) == n_done + 1:
                    require_loadable(state, epochs, state_types)
                checkpoint.save(lambda: pack(state, epochs), run.id, is_last=len(epochs) == n_epochs)

            yield Training(state, epochs, save, run, TrainingProgress(n_epochs, n_examples, n_done + 1))
            outs = dvcfiles.md5s(dvcfiles.declared(EXPERIMENT.train)["outs"])
            record_environment(outs, EXPERIMENT.environment(params, device))
            run.log_training_outputs(params)
        checkpoint.finish()


def pack(state: Any, epochs: list[dict[str, Any]]) -> bytes:
    """Serialize a state of the training loop and the history so far."""
    import torch

    content = io.BytesIO()
    torch.save((state, epochs), content)
    return content.getvalue()


def unpack(content: bytes, state_types: tuple[type, ...]) -> tuple[Any, list[dict[str, Any]]]:
    """Restore exactly what `pack` serialized, with tensors on the CPU. No code from the content is executed."""
    import torch

    with torch.serialization.safe_globals(list(state_types)):
        state, epochs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state, epochs


def require_loadable(state: Any, epochs: list[dict[str, Any]], state_types: tuple[type, ...]) -> None:
    """Check that a stopped training could resume from this state.

    Raises:
        PipelineError: the state or an epoch's record holds something that `unpack` refuses.
    """
    try:
        unpack(pack(state, epochs), state_types)
    except (pickle.PicklingError, pickle.UnpicklingError, AttributeError, TypeError) as error:
        raise PipelineError(
            f"the training could not resume from its state, {reason_of(error)}; name the state's classes in "
            "`state_types`, and give Python numbers to the record"
        ) from None


def reason_of(error: Exception) -> str:
    """Return in a few words why a state cannot be saved or loaded."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    return f"because it holds a {refused[1]}" if refused else on_one_line(error)[:200]
