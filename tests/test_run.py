"""What `make run` does, with and without a mirror."""

import json
from pathlib import Path

import pytest

from tests.helpers import PROJECT, copy_project, git, run, small_params, write_params
from tests.mirror import Mirror


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A committed copy of the project with a small network, on MNIST, never run."""
    project = copy_project(tmp_path / "fresh")
    write_params(small_params(data__dataset="mnist"), project)
    git(project, "commit", "-q", "-a", "-m", "small")
    return project


def test_without_any_mirror_it_runs_on_digits_and_says_so(fresh: Path) -> None:
    """An explicit parameter change, visible in git and DVC; results, notice and the way back at the end."""
    with Mirror() as gone:
        url = gone.url
    done = run(fresh, "pipeline.run", MNIST_MIRROR=url)
    assert "MNIST cannot be reached" in done.stdout
    assert "-  dataset: mnist\n+  dataset: digits" in git(fresh, "diff", "params.yaml")
    assert "data.dataset" in run(fresh, "dvc", "params", "diff").stdout
    assert json.loads((fresh / "reports/evaluate.json").read_text())["dataset"] == "digits"

    again = run(fresh, "pipeline.run", MNIST_MIRROR=url)
    assert "Running stage" not in again.stdout
    for printed in (done.stdout, again.stdout):
        assert "Test MSE" in printed
        assert "to go back to MNIST: dvc exp run -S data.dataset=mnist" in printed


def test_a_mirror_with_bad_content_is_an_error_not_a_change_of_data(fresh: Path, mirror: Mirror) -> None:
    """Where a mirror answers, MNIST is not swapped: a bad checksum stays an error."""
    mirror.fault = "html"
    done = run(fresh, "pipeline.run", ok=False, MNIST_MIRROR=mirror.url)
    assert done.returncode == 2
    assert "no mirror has a genuine train-images-idx3-ubyte" in done.stderr
    assert "error: `dvc repro` failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert git(fresh, "diff", "params.yaml") == ""


def test_bad_parameters_stop_it_before_dvc_deletes_anything(project: Path) -> None:
    """The parameters are checked first, so that the last results stay where they are."""
    path = project / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace("lr: 0.005", "lr: 0"))
    try:
        done = run(project, "pipeline.run", ok=False)
    finally:
        path.write_text(text)
    assert done.returncode == 2
    assert "train.lr" in done.stderr
    assert (project / "models/autoencoder.safetensors").is_file()


def test_params_yaml_survives_dvcs_rewriting(tmp_path: Path) -> None:
    """`dvc exp run -S` rewrites params.yaml; as it is committed only the changed line differs."""
    project = copy_project(tmp_path / "fresh")
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(str(project / "params.yaml")) as values:
        values["data"]["dataset"] = "digits"
    changed = (project / "params.yaml").read_text()
    assert changed == (PROJECT / "params.yaml").read_text().replace("dataset: mnist", "dataset: digits")
