"""PCA, the baseline."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.pca import fit_pca, load_pca, save_pca
from tests.helpers import random_split


def test_mse_is_that_of_the_reconstructions() -> None:
    """The closed form for every number of components equals reconstructing and measuring."""
    train, test = random_split(200, seed=1).pixels(), random_split(40, seed=2).pixels()
    pca = fit_pca(train)
    mse = pca.mse(test)
    assert mse.shape == (201,)
    for n in (0, 1, 7, 100):
        assert mse[n] == pytest.approx(((pca.reconstruct(test, n) - test) ** 2).mean(), rel=1e-4)
    assert (np.diff(mse) <= 0).all()


def test_no_component_is_the_mean_image() -> None:
    """With 0 components every image becomes the mean of the training images."""
    train = random_split(30).pixels()
    np.testing.assert_allclose(fit_pca(train).reconstruct(train, 0), np.tile(train.mean(axis=0), (30, 1)), atol=1e-6)


def test_components_are_saved_and_loaded(tmp_path: Path) -> None:
    """The file holds what was fitted."""
    pca = fit_pca(random_split(30).pixels())
    save_pca(pca, tmp_path / "new/pca.safetensors")
    loaded = load_pca(tmp_path / "new/pca.safetensors")
    np.testing.assert_array_equal(loaded.components, pca.components)
    np.testing.assert_array_equal(loaded.mean, pca.mean)


def test_a_missing_or_damaged_file(tmp_path: Path) -> None:
    """Both are errors that say which command makes the file."""
    path = tmp_path / "pca.safetensors"
    with pytest.raises(PipelineError, match="is missing; `dvc repro baselines`"):
        load_pca(path)
    path.write_bytes(b"nothing")
    with pytest.raises(PipelineError, match="is damaged"):
        load_pca(path)
