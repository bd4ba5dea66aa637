"""The record of the environment that produced the results."""

import json
import platform
from pathlib import Path

import pytest
import torch

from pipeline.autoencoder import environment
from pipeline.core.environment import RECORD_PATH, record, recorded

OUTS = {"models/autoencoder.safetensors": "0" * 32}


def test_the_fingerprint_names_hardware_versions_and_threads() -> None:
    """The fingerprint holds what decides a training's last bits besides code, data and parameters."""
    found = environment.fingerprint("cpu")
    assert found["python"] == platform.python_version()
    assert torch.__version__.startswith(found["torch"].partition("+")[0])
    assert found["device"] == "cpu"
    assert found["threads"] == str(torch.get_num_threads())
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert all(found.values())


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("cpu", "MKL_CBWR"),
        ("cpu", "MKL_ENABLE_INSTRUCTIONS"),
        ("cpu", "ONEDNN_MAX_CPU_ISA"),
        ("cpu", "DNNL_MAX_CPU_ISA"),
        ("cpu", "OPENBLAS_CORETYPE"),
        ("cuda", "MKL_CBWR"),
        ("cuda", "CUBLAS_WORKSPACE_CONFIG"),
        ("cuda", "NVIDIA_TF32_OVERRIDE"),
    ],
)
def test_a_variable_that_changes_the_kernels_is_recorded(
    device: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two environments with different values of the variable have different fingerprints."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.delenv(name, raising=False)
    assert name not in environment.fingerprint(device)
    monkeypatch.setenv(name, "chosen")
    assert environment.fingerprint(device)[name] == "chosen"


def test_a_cpu_fingerprint_leaves_out_cuda_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training sets CUBLAS_WORKSPACE_CONFIG on every machine, but the fingerprint of a CPU leaves it out."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    assert "CUBLAS_WORKSPACE_CONFIG" not in environment.fingerprint("cpu")


def test_the_record_holds_no_time_host_or_path(tmp_dir: Path) -> None:
    """The file is in git, so nothing in it is specific to one machine."""
    record(OUTS, environment.fingerprint("cpu"))
    text = RECORD_PATH.read_text()
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    assert set(json.loads(text)) == {"outs", "environment"}


def test_reproducing_the_same_bytes_keeps_the_record(tmp_dir: Path) -> None:
    """The environment that first produced the bytes stays recorded; other bytes replace the record."""
    record(OUTS, environment.fingerprint("cpu"))
    path = RECORD_PATH
    first = path.read_text().replace(platform.python_version(), "3.99.0")
    path.write_text(first)
    record(OUTS, environment.fingerprint("cpu"))
    assert path.read_text() == first
    record({"models/autoencoder.safetensors": "1" * 32}, environment.fingerprint("cpu"))
    assert recorded()["environment"]["python"] == platform.python_version()


@pytest.mark.parametrize("content", [None, "", "no JSON {", "{}", "[]"])
def test_a_missing_or_damaged_record_is_written_again(tmp_dir: Path, content: str | None) -> None:
    """A file with merge conflicts needs no manual repair."""
    if content is not None:
        RECORD_PATH.parent.mkdir()
        RECORD_PATH.write_text(content)
    assert recorded() == {"outs": {}, "environment": {}}
    record(OUTS, environment.fingerprint("cpu"))
    assert recorded()["outs"] == OUTS
