"""The trials of a sweep: the cells of a parameter grid, each identified by its parameters and the code."""

import hashlib
import itertools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.core import dvcfiles
from pipeline.core.errors import PipelineError
from pipeline.core.params_file import parse_values, short
from pipeline.experiment import EXPERIMENT
from pipeline.params import Params, load_params
from pipeline.tracking import fingerprints

LOGS = Path(".dvc/tmp/sweep")


@dataclass(frozen=True)
class Trial:
    """One cell of the grid."""

    changes: dict[str, Any]
    params: Params
    name: str
    readable: str  # the name, in the characters that DVC allows
    digest: str  # of parameters and code, because other grids give the same trial another name
    codes: tuple[str, str]  # the tags `code` and `evaluation.code` of its MLflow run

    @property
    def experiment(self) -> str:
        """The name of the trial's DVC experiment."""
        return f"{self.readable}-{self.digest}"

    @property
    def log(self) -> Path:
        return LOGS / f"{self.experiment}.log"

    @property
    def n_threads(self) -> int:
        """The number of threads that the training uses; with `train.threads: auto` all cores of this machine."""
        threads = self.params.train.threads
        return (os.cpu_count() or 1) if threads == "auto" else threads

    @property
    def settings(self) -> list[str]:
        """The options of `dvc exp run` for this trial."""
        return [part for name, value in self.changes.items() for part in ("-S", f"{name}={json.dumps(value)}")]


def parse_grid(arguments: list[str]) -> dict[str, list[Any]]:
    """Parse `name=value,value` arguments, each of which may hold several, to {'model.width': [2, 4], …}.

    Raises:
        PipelineError: a part is not `name=values`, or a name is given twice.
    """
    grid: dict[str, list[Any]] = {}
    for argument in arguments:
        for part in re.split(r"\s+(?=[\w.]+=)", argument.strip()):
            name, equals, values = part.partition("=")
            if not equals or not values:
                raise PipelineError(f"-S needs a parameter and its values, like train.lr=0.001,0.005; got {part!r}")
            if name in grid:
                raise PipelineError(f"{name} is given twice; list its values with commas")
            grid[name] = parse_values(values)
    return grid


def make_trials(grid: dict[str, list[Any]]) -> list[Trial]:
    """Return the grid's trials, with the code and all other parameters of the repository in the working folder.

    The first parameter varies fastest, so that whole curves appear early.

    Raises:
        PipelineError: a trial has values that are not allowed.
    """
    code = fingerprints.code_of_stages()
    codes = fingerprints.training_code(), fingerprints.evaluation_code()
    varied = [name for name in grid if len(grid[name]) > 1]
    trials: dict[str, Trial] = {}
    for reversed_values in itertools.product(*reversed(grid.values())):
        changes = dict(zip(grid, reversed(reversed_values), strict=True))
        params = load_params(changes=changes)
        name = fingerprints.run_name(params, varied)
        readable = re.sub(r"[^\w.]+", "-", name).strip("-.").replace("..", ".")[:100]
        trial = Trial(changes, params, name, readable, digest_of(params, code), codes)
        trials.setdefault(trial.experiment, trial)
    return list(trials.values())


def shared_stages(trials: list[Trial]) -> list[str]:
    """Return the stages whose outputs are the same for all trials, by dvc.yaml in the working folder.

    These are the stages outside the training and its descendants that depend on no parameter of the grid.
    """
    of_a_trial = dvcfiles.with_descendants({EXPERIMENT.train})
    return [stage for stage in dvcfiles.stages_without(changed_names(trials)) if stage not in of_a_trial]


def changed_names(trials: list[Trial]) -> set[str]:
    """Return the parameters that the grid sets, including those with only one value."""
    return {name for trial in trials for name in trial.changes}


def default_name(grid: dict[str, list[Any]]) -> str:
    """Name a sweep after its parameters, with the value of those that have only one: `width,seed=0`."""
    return ",".join(short(name) + (f"={values[0]}" if len(values) == 1 else "") for name, values in grid.items())


def digest_of(params: Params, code: dict[str, str]) -> str:
    """Return the hash that identifies a trial; `code` is {path: MD5} of the stages' Python files."""
    content = json.dumps({"params": params.flat(), **dvcfiles.contents(code)}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def digest_in_lock(lock: dict[str, Any]) -> str | None:
    """Return the digest of the trial that a dvc.lock records.

    None if it does not record one whole run, or if its parameters are not allowed.
    """
    locked = lock.get("stages", {})
    if dvcfiles.contradictions(locked):
        return None
    stages = locked.values()
    params: dict[str, dict[str, Any]] = {}
    for stage in stages:
        for name, value in stage.get("params", {}).get("params.yaml", {}).items():
            section, _, key = name.partition(".")
            params.setdefault(section, {}).update({key: value} if key else value)
    code = {dep["path"]: dep["md5"] for stage in stages for dep in stage.get("deps", []) if dep["path"].endswith(".py")}
    try:
        return digest_of(Params.model_validate(params), code)
    except ValidationError:
        return None
