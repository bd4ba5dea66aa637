"""Test what importing the package sets up."""

import subprocess
import sys

import pytest

from tests.helpers import PROJECT, environment

SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def openmp_settings(**chosen: str) -> str:
    """Return the settings that libgomp prints when a stage's imports load it."""
    variables = {name: value for name, value in environment().items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", "import pipeline.autoencoder.trainer"],
        cwd=PROJECT,
        env=variables | {"OMP_DISPLAY_ENV": "VERBOSE"} | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch uses libgomp on Linux only")
def test_waiting_threads_spin_only_briefly() -> None:
    """libgomp gets a short spin count before torch loads it, unless the user has chosen how threads wait."""
    assert "GOMP_SPINCOUNT = '1000'" in openmp_settings()
    assert "GOMP_SPINCOUNT = '5'" in openmp_settings(GOMP_SPINCOUNT="5")
    assert "GOMP_SPINCOUNT = '1000'" not in openmp_settings(OMP_WAIT_POLICY="active")
