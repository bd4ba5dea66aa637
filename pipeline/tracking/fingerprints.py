"""What a run is known by: hashes of its parameters, outs and code, and its name."""

import hashlib
import json
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from pipeline.core import dvcfiles
from pipeline.core.params_file import short
from pipeline.experiment import EXPERIMENT
from pipeline.tracking import provenance

if TYPE_CHECKING:
    from pipeline.params import Params

LONGEST_NAME = 100


def fingerprint(params: "Params", outs: dict[str, str] | None = None) -> str:
    """A hash of all parameters and of everything that training wrote: {path: MD5}, by default the workspace's."""
    if outs is None:
        outs = dvcfiles.md5s(dvcfiles.declared(EXPERIMENT.train)["outs"])
    return _hash({"params": params.flat(), "outs": outs})


def training_hash(params: "Params", device: str) -> str:
    """A hash of all that decides what the training writes: parameters, data, code, versions, hardware and threads."""
    declared = dvcfiles.declared(EXPERIMENT.train)
    content = {
        "params": {name: value for name, value in params.flat().items() if dvcfiles.declares(EXPERIMENT.train, name)},
        "files": dvcfiles.contents(dvcfiles.md5s(declared["deps"])),
        "environment": EXPERIMENT.environment(params, device),
    }
    return _hash(content)[:32]


def evaluation_hash() -> str:
    """A hash of everything that evaluation read and wrote."""
    declared = dvcfiles.declared(EXPERIMENT.evaluate)
    return _hash(dvcfiles.contents(dvcfiles.md5s(declared["deps"] + declared["outs"])))


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_of_stages(stages: Iterable[str] | None = None) -> dict[str, str]:
    """{path: MD5} of every Python file that one of these stages depends on, by default of all stages."""
    named = dvcfiles.all_stages() if stages is None else stages
    deps = {path for stage in named for path in dvcfiles.declared(stage)["deps"]}
    return dvcfiles.md5s(sorted(path for path in deps if path.endswith(".py")))


def training_code() -> str:
    """The tag `code`, of the files that the training and the stages before it depend on. A curve's runs share it."""
    return _hash(dvcfiles.contents(code_of_stages(dvcfiles.with_ancestors({EXPERIMENT.train}))))[:16]


def evaluation_code() -> str:
    """The tag `evaluation.code`, of the files that the other stages depend on: with another one a number may have
    been computed otherwise."""
    before = dvcfiles.with_ancestors({EXPERIMENT.train})
    others = [stage for stage in dvcfiles.all_stages() if stage not in before]
    return _hash(dvcfiles.contents(code_of_stages(others)))[:16]


def run_name(params: "Params", varied: Collection[str] = ()) -> str:
    """A run's name: `experiment.run_name`, then the parameters `varied`, then those that differ from the commit.

    It has at most LONGEST_NAME characters. MLFLOW_RUN_NAME in the environment replaces it.
    """
    values, committed = params.flat(), provenance.committed_params()
    differing = [name for name, value in values.items() if committed.get(name, value) != value]
    usual = EXPERIMENT.run_name(params)
    others = [name for name in dict.fromkeys([*varied, *differing]) if name not in usual]
    text = " ".join(filter(None, [*usual.values(), *(f"{short(name)}={values[name]}" for name in others)]))
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
