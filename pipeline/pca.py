"""Principal component analysis of the training images: the linear autoencoder to compare with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from sklearn.decomposition import PCA

from pipeline.errors import PipelineError
from pipeline.outs import write_out


@dataclass(frozen=True)
class PcaModel:
    """mean [784] and orthonormal components [c, 784], float32, the most important component first."""

    mean: np.ndarray
    components: np.ndarray

    def encode(self, pixels: np.ndarray, n_components: int) -> np.ndarray:
        """[n, 784] → [n, n_components], or as many as there are."""
        return (pixels - self.mean) @ self.components[:n_components].T

    def reconstruct(self, pixels: np.ndarray, n_components: int) -> np.ndarray:
        """[n, 784] → [n, 784], through the first `n_components`; 0 of them give the mean image."""
        return self.encode(pixels, n_components) @ self.components[:n_components] + self.mean

    def mse(self, pixels: np.ndarray) -> np.ndarray:
        """The reconstruction MSE of `pixels` [n, 784] with 0, 1, …, c components: float64 [c + 1].

        Each further component removes the squared length of its projection from the error.
        """
        centred = pixels.astype(np.float64) - self.mean
        captured = ((centred @ self.components.T) ** 2).mean(axis=0)
        left = (centred**2).sum(axis=1).mean() - np.concatenate([[0.0], np.cumsum(captured)])
        return np.maximum(left, 0) / pixels.shape[1]


def fit_pca(pixels: np.ndarray) -> PcaModel:
    """All the components that `pixels` [n, 784] have: 784, or n if that is fewer."""
    pca = PCA(svd_solver="covariance_eigh").fit(pixels.astype(np.float64))
    return PcaModel(pca.mean_.astype(np.float32), np.ascontiguousarray(pca.components_, np.float32))


def save_pca(pca: PcaModel, path: Path) -> None:
    write_out(path, save({"mean": pca.mean, "components": pca.components}))


def load_pca(path: Path) -> PcaModel:
    """Read what `save_pca` wrote.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    if not path.is_file():
        raise PipelineError(f"{path} is missing; `dvc repro baselines` makes it")
    try:
        tensors = load_file(path)
        return PcaModel(tensors["mean"], tensors["components"])
    except (SafetensorError, KeyError, OSError):
        raise PipelineError(f"{path} is damaged; delete it, then `dvc repro baselines` brings it back") from None
