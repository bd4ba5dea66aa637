"""The model in MLflow's format does what the network does, for any batch, and refuses anything else."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel

import pipeline
from pipeline.autoencoder.model import Architecture, AutoEncoder, save_model
from pipeline.autoencoder.served_model import save_for_mlflow
from pipeline.core.processes import stop_session, wait_until_up
from tests.helpers import environment, free_port, random_split

BOTTLENECK_SIZE = 3


@pytest.fixture(scope="module")
def network() -> AutoEncoder:
    torch.manual_seed(0)
    network = AutoEncoder(Architecture(BOTTLENECK_SIZE, (16,), "batch_norm", 0.0))
    network.train()(torch.rand(8, 784))  # so that batch normalisation is not the identity
    return network.eval()


@pytest.fixture(scope="module")
def folder(network: AutoEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("served")
    save_model(network, parent / "weights.safetensors")
    save_for_mlflow(str(parent / "weights.safetensors"), str(parent / "model"), Model())
    return parent / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> PyFuncModel:
    return mlflow.pyfunc.load_model(str(folder))


def pixels(n: int) -> np.ndarray:
    return random_split(max(n, 1)).pixels()[:n]


@pytest.mark.parametrize("n", [0, 1, 3, 10_000])
def test_each_task_equals_the_network(model: PyFuncModel, network: AutoEncoder, n: int) -> None:
    """Reconstructions, codes and decoded images have the network's bits, for any number of images."""
    images = pixels(n)
    with torch.no_grad():
        codes = network.encode(torch.from_numpy(images)).numpy()
        expected = network(torch.from_numpy(images)).numpy()
    assert codes.shape == (n, BOTTLENECK_SIZE)
    np.testing.assert_array_equal(model.predict(images), expected)
    np.testing.assert_array_equal(model.predict(images, params={"task": "encode"}), codes)
    np.testing.assert_array_equal(model.predict(codes, params={"task": "decode"}), expected)
    assert np.asarray(model.predict(images)).dtype == np.float32


def test_tables_doubles_and_bytes(model: PyFuncModel) -> None:
    """A DataFrame, doubles and lists are images too; with `white` 255 pixels are 0…255 in and out."""
    split = random_split(5)
    expected = np.asarray(model.predict(split.pixels()))
    for same in (pd.DataFrame(split.pixels()), split.pixels().astype(np.float64), split.pixels().tolist()):
        np.testing.assert_array_equal(model.predict(same), expected)
    raw = split.images.reshape(5, 784)
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(model.predict(raw, params={"white": 255.0}), expected * np.float32(255))
    codes = model.predict(raw, params={"white": 255.0, "task": "encode"})
    np.testing.assert_array_equal(codes, model.predict(split.pixels(), params={"task": "encode"}))


@pytest.mark.parametrize(
    ("given", "params", "message"),
    [
        (np.zeros((2, 783)), {}, r"images must have the shape \[n, 784\], these have \[2, 783\]"),
        (np.zeros(784), {}, r"images must have the shape \[n, 784\], these have \[784\]"),
        (np.zeros((2, 784)), {"task": "decode"}, r"codes must have the shape \[n, 3\], these have \[2, 784\]"),
        (np.full((1, 784), 255), {}, r"pixels must be in 0…1, these are in 255…255; for pixels 0…255 set .* to 255"),
        (np.full((1, 784), -0.5), {}, r"pixels must be in 0…1, these are in -0.5…-0.5"),
        (np.full((1, 784), 256), {"white": 255.0}, r"pixels must be in 0…255, these are in 256…256$"),
        (np.full((1, 784), np.nan), {}, "images must be finite numbers"),
        (np.full((1, 3), np.inf), {"task": "decode"}, "codes must be finite numbers"),
        (np.full((1, 784), "x"), {}, r"images must be numbers, \[n, 784\]"),
        (np.zeros((1, 784)), {"task": "dream"}, "task is 'dream', not one of reconstruct, encode, decode"),
        (np.zeros((1, 784)), {"white": 0.0}, "white is 0.0, not a positive number"),
    ],
)
def test_what_is_refused(model: PyFuncModel, given: np.ndarray, params: dict[str, Any], message: str) -> None:
    """Another shape, range or task is an error that says what is expected and what came."""
    with pytest.raises(MlflowException, match=message):
        model.predict(given, params=params)


def test_it_loads_without_this_project_and_without_pickle(folder: Path, tmp_path: Path, model: PyFuncModel) -> None:
    """In another folder, without this project on the path and without pickle, it loads and gives the same bits."""
    np.save(tmp_path / "images.npy", pixels(3))
    code = f"""
import pickle
import mlflow.pyfunc, numpy, torch, cloudpickle
def refused(*_, **__):
    raise AssertionError("something is unpickled")
pickle.load = pickle.loads = pickle.Unpickler = cloudpickle.load = cloudpickle.loads = torch.load = refused
model = mlflow.pyfunc.load_model({str(folder)!r})
numpy.save("answer.npy", model.predict(numpy.load("images.npy")))
import pipeline.autoencoder.model
print(pipeline.autoencoder.model.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == folder / "code/pipeline/autoencoder/model.py"
    np.testing.assert_array_equal(np.load(tmp_path / "answer.npy"), model.predict(pixels(3)))


def test_the_format_says_what_goes_in_and_out(folder: Path) -> None:
    """The format has tasks and units; its few files hold the weights once and no path of this machine."""
    stored = Model.load(str(folder))
    assert stored.metadata is not None
    assert stored.metadata["input"].startswith("images, [n, 784] numbers in 0…white")
    assert [param.name for param in stored.signature.params.params] == ["task", "white"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) <= 14
    assert [path.name for path in files if path.stat().st_size > 50_000] == ["weights.safetensors"]
    assert str(folder.parent) not in (folder / "MLmodel").read_text()
    assert "model_code_path: served_model.py" in (folder / "MLmodel").read_text()


def test_a_deleted_folder_of_code_does_not_matter(
    network: AutoEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If DVC has deleted the temporary folder of the code, the files come from the main repository."""
    monkeypatch.setattr(pipeline, "__path__", [str(tmp_path / "deleted"), *pipeline.__path__])
    save_model(network, tmp_path / "weights.safetensors")
    save_for_mlflow(str(tmp_path / "weights.safetensors"), str(tmp_path / "model"), Model())
    assert (tmp_path / "model/code/pipeline/autoencoder/model.py").is_file()


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """The model behind MLflow's own server."""
    port = free_port()
    command = ["models", "serve", "-m", str(folder), "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *command], env=environment(), start_new_session=True)
    try:
        wait_until_up(server, f"http://127.0.0.1:{port}/ping")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        stop_session(server)


def post(address: str, content: bytes) -> Any:
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_over_http(address: str, model: PyFuncModel) -> None:
    """Over HTTP each task has the same bits; garbage gets status 400 with a reason, and the server still answers."""
    images = pixels(3)
    for params in ({}, {"task": "encode"}, {"task": "reconstruct", "white": 1.0}):
        expected = model.predict(images, params=params)
        answer = post(address, json.dumps({"inputs": images.tolist(), "params": params}).encode())
        np.testing.assert_array_equal(np.asarray(answer["predictions"], np.float32), expected)
    table = json.dumps({"dataframe_split": {"data": images.tolist()}}).encode()
    np.testing.assert_array_equal(np.asarray(post(address, table)["predictions"], np.float32), model.predict(images))
    assert post(address, b'{"inputs": []}')["predictions"] == []
    for garbage in (
        b"",
        b"[",
        b'{"inputs": [[1, 2]]}',
        b'{"inputs": "x"}',
        b'{"inputs": [[2]], "params": {"task": 1}}',
    ):
        with pytest.raises(HTTPError) as refused:
            post(address, garbage)
        assert refused.value.code == 400
        assert re.search(r'"message": "\S+', refused.value.read().decode())
    assert post(address, b'{"inputs": []}')["predictions"] == []
