"""What runs a sweep's points as DVC experiments."""

import os
from pathlib import Path

import pytest

from pipeline import dvc_engine
from pipeline.grid import make_points


@pytest.mark.parametrize(
    ("threads", "jobs"), [([1], 8), ([2], 4), ([3], 2), ([2, 3], 2), ([8], 1), ([16], 1), (["auto"], 1)]
)
def test_as_many_points_run_at_once_as_the_cores_allow(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, threads: list[int | str], jobs: int
) -> None:
    """Each with its threads, the largest number of all points; one where the cores are too few."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert dvc_engine.default_jobs(make_points({"train.threads": threads})) == jobs
