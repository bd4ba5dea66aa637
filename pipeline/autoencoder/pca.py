"""Principal component analysis of the training images: the linear autoencoder to compare with."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save
from sklearn.decomposition import PCA

from pipeline.autoencoder.splits import IMAGE_SHAPE
from pipeline.core.files import reading, write_out


@dataclass(frozen=True)
class PcaModel:
    """The mean [784] and orthonormal components [c, 784], float32, most important component first."""

    mean: np.ndarray
    components: np.ndarray

    def encode(self, pixels: np.ndarray, n_components: int) -> np.ndarray:
        """Map images [n, 784] to codes [n, n_components], or fewer if PCA has fewer components."""
        return (pixels - self.mean) @ self.components[:n_components].T

    def reconstruct(self, pixels: np.ndarray, n_components: int) -> np.ndarray:
        """Reconstruct images [n, 784] from the first `n_components`; 0 components give the mean image.

        The pixels are clipped to 0…1, like the autoencoder's.
        """
        return (self.encode(pixels, n_components) @ self.components[:n_components] + self.mean).clip(0, 1)

    def mse(self, pixels: np.ndarray, n_components: int) -> float:
        """Return the reconstruction MSE of `pixels` [n, 784], the mean over images and pixels."""
        return float(((self.reconstruct(pixels, n_components) - pixels) ** 2).mean(dtype=np.float64))


def fit_pca(pixels: np.ndarray) -> PcaModel:
    """Fit all components that `pixels` [n, 784] have: 784, or n if that is fewer."""
    pca = PCA(svd_solver="covariance_eigh").fit(pixels.astype(np.float64))
    return PcaModel(pca.mean_.astype(np.float32), np.ascontiguousarray(pca.components_, np.float32))


def save_pca(pca: PcaModel, path: Path) -> None:
    write_out(path, save({"mean": pca.mean, "components": pca.components}))


def load_pca(path: Path) -> PcaModel:
    """Read what `save_pca` wrote.

    Raises:
        PipelineError: the file is missing, damaged or holds something else.
    """
    with reading(path, "baselines"):
        pca = PcaModel(**load_file(path))
        shape = (math.prod(IMAGE_SHAPE),)
        if not (pca.mean.shape == shape == pca.components.shape[1:] and pca.mean.dtype == pca.components.dtype == "f4"):
            raise ValueError
    return pca
