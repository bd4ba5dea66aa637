"""Run the five stages' main functions in one process, on digits, and check what evaluate measures."""

import json
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import baselines, evaluate, pca_probes, prepare, train
from pipeline.autoencoder import figures
from pipeline.autoencoder.metrics import effective_rank, measure
from pipeline.autoencoder.model import Architecture, AutoEncoder, load_model
from pipeline.autoencoder.pca import load_pca
from pipeline.autoencoder.probes import accuracies
from pipeline.autoencoder.splits import load_split, save_split
from pipeline.autoencoder.trainer import reconstruction_mse
from pipeline.core.errors import PipelineError
from tests.helpers import FIGURES, PROJECT, random_split, small_params, write_params


@pytest.fixture
def workspace(tmp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with dvc.yaml and small parameters, in which stages can run by hand, without tracking."""
    monkeypatch.setenv("PIPELINE_TRACKING", "0")
    (tmp_dir / ".dvc").mkdir()
    (tmp_dir / "dvc.yaml").write_text((PROJECT / "dvc.yaml").read_text())
    write_params(small_params())
    return tmp_dir


def run_stages(*stages: ModuleType) -> None:
    for stage in stages:
        stage.main()


def test_measure_by_hand() -> None:
    """MSE, PSNR, ratio and the digits' MSEs equal those computed by hand."""
    metrics = measure(np.array([0.01, 0.03, 0.05]), np.array([0, 0, 7]), 0.05, 0.07)
    assert metrics == {
        "mse": pytest.approx(0.03),
        "psnr_db": pytest.approx(15.2288, abs=1e-4),
        "pca_mse": 0.05,
        "mean_image_mse": 0.07,
        "ratio_to_pca": pytest.approx(0.6),
        "digit_mse": {"0": pytest.approx(0.02), "7": pytest.approx(0.05)},
    }


def test_there_is_no_ratio_to_a_pca_without_error() -> None:
    """If PCA has no error beyond rounding, the metrics hold no ratio to it."""
    metrics = measure(np.array([0.01]), np.array([0]), 1e-12, 0.07)
    assert metrics["pca_mse"] == 1e-12
    assert "ratio_to_pca" not in metrics


@pytest.mark.parametrize("bottleneck_size", [1, 3, 784])
def test_every_bottleneck_size_can_be_evaluated(
    workspace: Path, bottleneck_size: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From 1 to 784, metrics match the model's reconstructions and codes, and all figures are drawn."""
    write_params(small_params(model__bottleneck_size=bottleneck_size))
    draw, draw_worst = MagicMock(wraps=figures.reconstructions), MagicMock(wraps=figures.worst)
    monkeypatch.setattr(figures, "reconstructions", draw)
    monkeypatch.setattr(figures, "worst", draw_worst)
    run_stages(prepare, baselines, pca_probes, train, evaluate)
    printed = capsys.readouterr().out
    assert f"test accuracy on {bottleneck_size} PCA components: logistic regression " in printed
    for step in (
        "encoding ",
        "reading the digit from ",
        "decoding without each latent dimension",
        "drawing the figures",
    ):
        assert f"\n{step}" in printed
    metrics = json.loads(evaluate.METRICS_PATH.read_text())
    train_split, split = load_split(prepare.TRAIN_PATH), load_split(prepare.TEST_PATH)
    train_pixels, pixels = train_split.pixels(), split.pixels()
    model, pca = load_model(train.MODEL_PATH).requires_grad_(False), load_pca(baselines.PCA_PATH)
    reconstructed = model(torch.from_numpy(pixels)).numpy()
    train_codes, codes = (model.encode(torch.from_numpy(images)).numpy() for images in (train_pixels, pixels))
    mse = ((reconstructed - pixels) ** 2).mean()
    np.testing.assert_allclose(draw.call_args.args[3], reconstructed, atol=1e-5)
    np.testing.assert_allclose(draw_worst.call_args.args[3], reconstructed, atol=1e-5)
    np.testing.assert_allclose(draw.call_args.args[4], pca.reconstruct(pixels, bottleneck_size), atol=1e-5)
    assert metrics["dataset"] == "digits"
    assert metrics["test"]["mse"] == pytest.approx(mse, rel=1e-5)
    table = pd.read_csv(baselines.PCA_MSE_PATH, index_col="n_components")["test_mse"]
    assert metrics["test"]["pca_mse"] == pytest.approx(table[bottleneck_size], rel=1e-5)
    assert metrics["test"]["mean_image_mse"] == pytest.approx(table[0], rel=1e-5)
    assert metrics["codes"]["effective_rank"] == pytest.approx(effective_rank(codes), rel=1e-4)
    dimensions = pd.read_csv(evaluate.DIMENSIONS_PATH)
    assert list(dimensions["dimension"]) == list(range(1, bottleneck_size + 1))
    assert dimensions["std"].to_numpy() == pytest.approx(codes.std(axis=0), rel=1e-4)
    without_last = codes.copy()
    without_last[:, -1] = codes[:, -1].mean()
    mse_without_last = ((model.decode(torch.from_numpy(without_last)).numpy() - pixels) ** 2).mean()
    assert dimensions["mse_growth_without"].iloc[-1] == pytest.approx(mse_without_last / mse - 1, rel=1e-3, abs=1e-5)
    assert metrics["codes"]["n_dead"] == (dimensions["mse_growth_without"] < 0.001).sum()
    for name in FIGURES:
        assert (workspace / f"reports/figures/{name}.png").stat().st_size > 10_000
    if bottleneck_size == 784:
        return  # standardising components without variance amplifies their last bits
    basis = pca.components[:bottleneck_size].T
    for name, on_train, on_test in (
        ("codes", train_codes, codes),
        ("pca", (train_pixels - pca.mean) @ basis, (pixels - pca.mean) @ basis),
        ("pixels", train_pixels, pixels),
    ):
        for classifier, accuracy in accuracies(on_train, train_split.labels, on_test, split.labels).items():
            # The last bits of a code may change the class of an image or two.
            assert metrics["accuracy"][classifier][name] == pytest.approx(accuracy, abs=2.5 / len(split))


def test_stages_name_a_missing_or_damaged_file(workspace: Path) -> None:
    """If a stage's input is missing or damaged, its error names the file and the command that makes it."""
    with pytest.raises(PipelineError, match=r"train\.safetensors is missing; `dvc repro prepare`"):
        train.main()
    with pytest.raises(PipelineError, match=r"data\.json is missing; `dvc repro`"):
        evaluate.main()
    prepare.main()
    with pytest.raises(PipelineError, match=r"pca\.safetensors is missing; `dvc repro baselines`"):
        pca_probes.main()
    baselines.main()
    with pytest.raises(PipelineError, match=r"pca_probes\.json is missing; `dvc repro`"):
        evaluate.main()
    pca_probes.main()
    with pytest.raises(PipelineError, match=r"autoencoder\.safetensors is missing; `dvc repro train`"):
        evaluate.main()
    for content in ('{"logistic', "[]", '{"logistic_regression": 0.9}'):
        evaluate.PIXEL_PROBES_PATH.write_text(content)
        with pytest.raises(PipelineError, match=r"pixel_probes\.json is damaged; delete it, then `dvc repro`"):
            evaluate.main()
    evaluate.SUMMARY_PATH.write_text('{"dataset": "letters"}')
    with pytest.raises(PipelineError, match=r"data\.json names an unknown data set, 'letters'; `dvc repro prepare`"):
        evaluate.main()
    evaluate.SUMMARY_PATH.write_text("{}")
    with pytest.raises(PipelineError, match=r"data\.json is damaged; delete it, then `dvc repro`"):
        evaluate.main()


def test_a_model_of_other_parameters_is_refused(workspace: Path) -> None:
    """Weights that were trained with other model parameters are not evaluated.

    A failed evaluation leaves no metrics of earlier weights.
    """
    run_stages(prepare, baselines, pca_probes, train)
    evaluate.METRICS_PATH.write_text("{}")
    write_params(small_params(model__bottleneck_size=3))
    with pytest.raises(PipelineError, match="was trained with other model parameters; `dvc repro`"):
        evaluate.main()
    assert not evaluate.METRICS_PATH.exists()


def test_training_shows_its_device_and_writes_its_record(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training prints what `auto` chose, the history has one line per epoch, and the metrics name the best epoch."""
    write_params(small_params(train__device="auto", train__threads="auto", train__n_epochs=3))
    run_stages(prepare, train)
    printed = capsys.readouterr().out
    assert "train.device: auto chose" in printed
    assert "images/s" in printed
    history = pd.read_csv(train.HISTORY_PATH)
    assert list(history["epoch"]) == [1, 2, 3]
    assert list(history.columns) == ["epoch", "train_mse", "valid_mse", "lr", "grad_norm", "param_norm"]
    metrics = json.loads(train.METRICS_PATH.read_text())
    assert metrics["valid"]["best_mse"] == pytest.approx(history["valid_mse"].min())
    assert metrics["valid"]["best_epoch"] == history["valid_mse"].argmin() + 1


def test_the_saved_weights_are_the_best_epochs(workspace: Path) -> None:
    """The saved weights reproduce the lowest validation MSE, not the last epoch's."""
    write_params(small_params(train__n_epochs=6, train__lr=0.5, train__schedule="constant"))
    run_stages(prepare, train)
    metrics = json.loads(train.METRICS_PATH.read_text())["valid"]
    assert metrics["best_epoch"] < 6  # otherwise the test would prove nothing
    valid = torch.from_numpy(load_split(train.VALID_PATH).pixels())
    assert reconstruction_mse(load_model(train.MODEL_PATH), valid) == pytest.approx(metrics["best_mse"], rel=1e-5)


def test_train_seed_decides_the_initial_weights(workspace: Path) -> None:
    """After one step with a negligible rate, the weights are those that torch draws from train.seed."""
    prepare.main()
    for seed in (3, 4):
        params = small_params(
            train__seed=seed, train__n_epochs=1, train__lr=1e-12, train__schedule="constant", train__batch_size=1200
        )
        write_params(params)
        train.main()
        torch.manual_seed(seed)
        initial = AutoEncoder(Architecture.from_params(params.model))
        torch.testing.assert_close(load_model(train.MODEL_PATH).encoder[0].weight, initial.encoder[0].weight)


def test_baselines_table(tmp_dir: Path) -> None:
    """The table has the clipped error of the mean image and of growing numbers of components, up to all."""
    save_split(random_split(60, seed=1), baselines.TRAIN_PATH)
    save_split(random_split(20, seed=2), baselines.TEST_PATH)
    baselines.main()
    table = pd.read_csv(baselines.PCA_MSE_PATH)
    assert list(table["n_components"]) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 23, 27, 32, 38, 45, 54, 60]
    pca, pixels = load_pca(baselines.PCA_PATH), load_split(baselines.TEST_PATH).pixels()
    for size, mse in table.itertuples(index=False):
        assert mse == pytest.approx(((pca.reconstruct(pixels, size) - pixels) ** 2).mean(), rel=1e-5)


def test_quiet(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """PIPELINE_VERBOSE=0 silences the progress and does not change the weights."""
    prepare.main()
    train.main()
    loud, weights = capsys.readouterr().out, train.MODEL_PATH.read_bytes()
    monkeypatch.setenv("PIPELINE_VERBOSE", "0")
    train.main()
    quiet = capsys.readouterr().out
    assert "epoch 1/2" in loud
    assert "epoch 1/2" not in quiet
    assert train.MODEL_PATH.read_bytes() == weights
