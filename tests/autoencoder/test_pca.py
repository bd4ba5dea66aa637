"""Test PCA, the baseline."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.autoencoder import datasets
from pipeline.autoencoder.pca import PcaModel, fit_pca, load_pca, save_pca
from pipeline.core.errors import PipelineError
from tests.helpers import random_split


def test_reconstructions_are_clipped_projections() -> None:
    """A reconstruction is the projection onto the first components, clipped to 0…1, and `mse` is its error."""
    train, test = datasets.digits()[0].pixels()[:200], datasets.digits()[1].pixels()[:40]
    pca = fit_pca(train)
    for n in (1, 7, 100):
        basis = np.linalg.svd(train - train.mean(axis=0))[2][:n]
        projected = (test - train.mean(axis=0)) @ basis.T @ basis + train.mean(axis=0)
        assert (projected < 0).any()
        np.testing.assert_allclose(pca.reconstruct(test, n), projected.clip(0, 1), atol=1e-4)
        assert pca.mse(test, n) == pytest.approx(((projected.clip(0, 1) - test) ** 2).mean(), rel=1e-4)
    assert pca.mse(test, 784) == pca.mse(test, 200)


def test_no_component_is_the_mean_image() -> None:
    """With 0 components every reconstruction is the mean of the training images."""
    train = random_split(30).pixels()
    np.testing.assert_allclose(fit_pca(train).reconstruct(train, 0), np.tile(train.mean(axis=0), (30, 1)), atol=1e-6)


def test_components_are_saved_and_loaded(tmp_path: Path) -> None:
    """Saving and loading returns the fitted mean and components."""
    pca = fit_pca(random_split(30).pixels())
    save_pca(pca, tmp_path / "new/pca.safetensors")
    loaded = load_pca(tmp_path / "new/pca.safetensors")
    np.testing.assert_array_equal(loaded.components, pca.components)
    np.testing.assert_array_equal(loaded.mean, pca.mean)


def test_a_missing_or_damaged_file(tmp_path: Path) -> None:
    """Both raise an error that names the command to run; a wrong shape or type counts as damage."""
    path = tmp_path / "pca.safetensors"
    with pytest.raises(PipelineError, match="is missing; `dvc repro baselines`"):
        load_pca(path)
    path.write_bytes(b"nothing")
    with pytest.raises(PipelineError, match="is damaged"):
        load_pca(path)
    for mean, components in (
        (np.zeros(64, np.float32), np.zeros((64, 64), np.float32)),
        (np.zeros(784, np.float32), np.zeros((10, 64), np.float32)),
        (np.zeros(784, np.float32), np.zeros(784, np.float32)),
        (np.zeros((1, 784), np.float32), np.zeros((10, 784), np.float32)),
        (np.zeros(784), np.zeros((10, 784))),
        (np.zeros(784, np.uint8), np.zeros((10, 784), np.float32)),
    ):
        save_pca(PcaModel(mean, components), path)
        with pytest.raises(PipelineError, match="is damaged; delete it, then `dvc repro baselines`"):
            load_pca(path)
