"""The form is checked before anything runs: each mistake is one line that names the file to mend."""

import re
from dataclasses import replace

import pytest

from pipeline.core.errors import PipelineError
from pipeline.experiment import EXPERIMENT
from tests.helpers import PROJECT, small_params


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


def test_this_projects_form_is_complete() -> None:
    """Parameters and stages have all that the form needs, with and without a parameter for the data set."""
    parameters = small_params().flat()
    EXPERIMENT.check(parameters)
    without = [name for name in parameters if name != EXPERIMENT.data_parameter]
    replace(EXPERIMENT, data_parameter=None).check(without)


@pytest.mark.parametrize("name", ["train.seed", "train.device", "train.threads", "data.dataset"])
def test_a_missing_parameter(name: str) -> None:
    """A parameter that the machinery needs is named."""
    with pytest.raises(PipelineError, match=rf"pipeline/params\.py has no {re.escape(name)}: add it"):
        EXPERIMENT.check([other for other in small_params().flat() if other != name])


@pytest.mark.parametrize("field", ["model_path", "history_path"])
def test_a_path_that_no_stage_writes(field: str) -> None:
    """A path that is not an output of the training stage is named."""
    wrong = replace(EXPERIMENT, **{field: "models/wrong.safetensors"})  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match=r"names models/wrong\.safetensors, which is not an output of train"):
        wrong.check(small_params().flat())
