"""Measure one epoch with the loops of PyTorch Lightning and pythae, on this project's network.

Both are optional: `pip install lightning pythae` in the project's environment. Only installed ones are measured.
"""

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.seed import BATCH_SIZE
from pipeline.autoencoder.model import AutoEncoder


def lightning_epoch_seconds(model: AutoEncoder, train: torch.Tensor) -> float:
    """Train one epoch with Lightning's Trainer and a DataLoader of tensors: no logger, progress bar or checkpoints."""
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clock: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            return F.mse_loss(self.model(batch[0]), batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

        def on_train_epoch_start(self) -> None:
            clock.append(time.perf_counter())

        def on_train_epoch_end(self) -> None:
            clock.append(time.perf_counter())

    loader = DataLoader(TensorDataset(train), batch_size=BATCH_SIZE, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends loader processes, which a tensor does not need
        trainer.fit(Module(), loader)
    started, ended = clock
    return ended - started


def pythae_epoch_seconds(model: AutoEncoder, train: torch.Tensor) -> float:
    """Train one epoch with pythae's BaseTrainer, whose loss is the sum of squared errors over pixels, not the mean."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import AE, AEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model.encoder

        def forward(self, pixels: torch.Tensor) -> ModelOutput:
            return ModelOutput(embedding=self.layers(pixels))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model.decoder

        def forward(self, codes: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(codes))

    logging.getLogger("pythae").setLevel(logging.ERROR)
    shape = AEConfig(input_dim=(train.shape[1],), latent_dim=model.architecture.bottleneck_size)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        config = BaseTrainerConfig(
            output_dir=folder, per_device_train_batch_size=BATCH_SIZE, learning_rate=1e-3, no_cuda=True
        )
        dataset = BaseDataset(train, torch.zeros(len(train)))
        trainer = BaseTrainer(AE(shape, Encoder(), Decoder()), dataset, training_config=config)
        trainer.prepare_training()
        started = time.perf_counter()
        trainer.train_step(epoch=1)
        return time.perf_counter() - started


EPOCH_SECONDS: dict[str, Callable[[AutoEncoder, torch.Tensor], float]] = {
    "lightning": lightning_epoch_seconds,
    "pythae": pythae_epoch_seconds,
}


def installed() -> dict[str, str]:
    """Return {name: version} of the installed frameworks."""
    return {name: version(name) for name in EPOCH_SECONDS if find_spec(name)}
