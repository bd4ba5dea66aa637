"""What identifies a run: hashes of its parameters, outputs and code, and its name."""

import hashlib
import json
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from pipeline.core import dvcfiles
from pipeline.core.checkpoint import FORMAT
from pipeline.core.params_file import short
from pipeline.experiment import EXPERIMENT
from pipeline.tracking import provenance

if TYPE_CHECKING:
    from pipeline.params import Params

LONGEST_NAME = 100


def fingerprint(params: "Params", outs: dict[str, str] | None = None) -> str:
    """Return a hash of all parameters and all training outputs ({path: MD5}, default: the workspace's)."""
    if outs is None:
        outs = dvcfiles.md5s(dvcfiles.declared(EXPERIMENT.train)["outs"])
    return _hash({"params": params.flat(), "outs": outs})


def training_hash(params: "Params", device: str) -> str:
    """Return a hash of all that determines training outputs: parameters, data, code, versions, hardware, threads."""
    declared = dvcfiles.declared(EXPERIMENT.train)
    content = {
        "params": {name: value for name, value in params.flat().items() if dvcfiles.declares(EXPERIMENT.train, name)},
        "files": dvcfiles.contents(dvcfiles.md5s(declared["deps"])),
        "environment": EXPERIMENT.environment(params, device),
        "checkpoint": FORMAT,
    }
    return _hash(content)[:32]


def evaluation_hash() -> str:
    """Return a hash of all files that evaluation read and wrote."""
    declared = dvcfiles.declared(EXPERIMENT.evaluate)
    return _hash(dvcfiles.contents(dvcfiles.md5s(declared["deps"] + declared["outs"])))


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_of_stages(stages: Iterable[str] | None = None) -> dict[str, str]:
    """Return {path: MD5} of the Python files that these stages depend on (default: all stages)."""
    named = dvcfiles.all_stages() if stages is None else stages
    deps = {path for stage in named for path in dvcfiles.declared(stage)["deps"]}
    return dvcfiles.md5s(sorted(path for path in deps if path.endswith(".py")))


def training_code() -> str:
    """Return the tag `code`: a hash of the code of training and the stages before it. A curve's runs share it."""
    return _hash(dvcfiles.contents(code_of_stages(dvcfiles.with_ancestors({EXPERIMENT.train}))))[:16]


def evaluation_code() -> str:
    """Return the tag `evaluation.code`: a hash of the code of all other stages.

    If it differs between two runs, their numbers may have been computed differently.
    """
    before = dvcfiles.with_ancestors({EXPERIMENT.train})
    others = [stage for stage in dvcfiles.all_stages() if stage not in before]
    return _hash(dvcfiles.contents(code_of_stages(others)))[:16]


def run_name(params: "Params", varied: Collection[str] = ()) -> str:
    """Return a run's name: `EXPERIMENT.run_name`, the parameters `varied`, then those that differ from the commit.

    It has at most LONGEST_NAME characters. The environment variable MLFLOW_RUN_NAME overrides it (see `runs`).
    """
    values, committed = params.flat(), provenance.committed_params()
    differing = [name for name, value in values.items() if committed.get(name, value) != value]
    usual = EXPERIMENT.run_name(params)
    others = [name for name in dict.fromkeys([*varied, *differing]) if name not in usual]
    text = " ".join(filter(None, [*usual.values(), *(f"{short(name)}={values[name]}" for name in others)]))
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
