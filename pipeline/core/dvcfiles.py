"""Read what dvc.yaml declares and dvc.lock records, without DVC: in the working folder or in a commit.

A stage cannot ask DVC, because DVC holds its lock while the stage runs.
"""

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from pipeline.core.errors import PipelineError, on_one_line
from pipeline.core.git import file_at
from pipeline.core.yaml_reader import load_yaml


def declared(stage: str) -> dict[str, list[str]]:
    """Return a stage's paths in dvc.yaml: {'deps': […], 'outs': […]}. Metrics and plots count as outs."""
    entry = _load("dvc.yaml")[stage]
    return {"deps": [_path(item) for item in entry.get("deps", [])], "outs": outs_of(entry)}


def outs_of(entry: dict[str, Any]) -> list[str]:
    """Return the paths of all outputs in a stage's entry of dvc.yaml."""
    return [_path(item) for kind in ("outs", "metrics", "plots") for item in entry.get(kind, [])]


def commands() -> dict[str, str]:
    """Return {stage: command} from dvc.yaml."""
    return {stage: entry["cmd"] for stage, entry in _load("dvc.yaml").items()}


def all_stages() -> list[str]:
    """Return the names of dvc.yaml's stages."""
    return list(_load("dvc.yaml"))


def all_outs() -> set[str]:
    """Return the paths of the outputs of all stages in dvc.yaml."""
    return {path for stage in all_stages() for path in declared(stage)["outs"]}


def locked_outs() -> dict[str, str]:
    """Return {path: MD5} of all outputs that dvc.lock records."""
    return {out["path"]: out["md5"] for stage in _load("dvc.lock").values() for out in stage.get("outs", [])}


def lock_at(commit: str) -> dict[str, Any]:
    """Return the content of a commit's dvc.lock; empty if the commit has none."""
    return load_yaml(file_at(commit, "dvc.lock") or "") or {}


def outs_at(commit: str, stage: str) -> dict[str, str]:
    """Return {path: MD5} of a stage's outputs from a commit's dvc.lock; empty if it does not record the stage."""
    entry = lock_at(commit).get("stages", {}).get(stage) or {}
    return {out["path"]: out["md5"] for out in entry.get("outs", [])}


def contradictions(locked: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (stage, path) of every dependency whose recorded hash differs from that of the output with the same path.

    This happens after `dvc exp run train`: evaluate's entry still records earlier weights. `locked` are the stages of
    dvc.lock.
    """
    made = {out["path"]: out.get("md5") for stage in locked.values() for out in stage.get("outs", [])}
    return [
        (name, dep["path"])
        for name, stage in locked.items()
        for dep in stage.get("deps", [])
        if made.get(dep["path"], dep.get("md5")) != dep.get("md5")
    ]


def md5s(paths: list[str]) -> dict[str, str]:
    """Return {path: MD5} of the files that exist, with the hashes that DVC computes."""
    return {path: _md5(Path(path)) for path in paths if Path(path).is_file()}


def stages_without(names: Iterable[str]) -> list[str]:
    """Return the stages that depend on none of these parameters (dotted names), directly or through their inputs.

    They come in dvc.yaml's order.
    """
    changed = list(names)
    reached = with_descendants({stage for stage in all_stages() if any(declares(stage, name) for name in changed)})
    return [stage for stage in all_stages() if stage not in reached]


def declares(stage: str, name: str) -> bool:
    """Return whether a stage of dvc.yaml declares this parameter (dotted name), its section or a part of it."""
    sections = _declared_params(stage).get("params.yaml")
    if sections is None:
        return False
    return not sections or any(
        f"{name}.".startswith(f"{section}.") or f"{section}.".startswith(f"{name}.") for section in sections
    )


def with_descendants(stages: set[str]) -> set[str]:
    """Return these stages and all stages downstream of them."""
    return _reachable(stages, _edges())


def with_ancestors(stages: set[str]) -> set[str]:
    """Return these stages and all stages upstream of them."""
    return _reachable(stages, {(reader, writer) for writer, reader in _edges()})


def _edges() -> set[tuple[str, str]]:
    """Return (writer, reader) stages: an output of the first equals, contains or lies in a dependency of the second."""
    paths = {stage: declared(stage) for stage in all_stages()}

    def overlap(a: str, b: str) -> bool:
        return PurePosixPath(a).is_relative_to(b) or PurePosixPath(b).is_relative_to(a)

    return {
        (writer, reader)
        for writer, reader in itertools.permutations(paths, 2)
        if any(itertools.starmap(overlap, itertools.product(paths[writer]["outs"], paths[reader]["deps"])))
    }


def _reachable(stages: set[str], edges: set[tuple[str, str]]) -> set[str]:
    found = stages & set(all_stages())
    for _ in edges:
        found |= {target for source, target in edges if source in found}
    return found


def contents(files: dict[str, str]) -> dict[str, Any]:
    """Reduce {path: MD5} to what a move of code does not change: of Python files only the sorted MD5s, under `code`."""
    code = sorted(md5 for path, md5 in files.items() if path.endswith(".py"))
    return {path: md5 for path, md5 in files.items() if not path.endswith(".py")} | {"code": code}


def is_up_to_date(stage: str) -> bool:
    """Return whether dvc.lock's entry matches dvc.yaml and the workspace: command, dependencies, parameters, outputs.

    If so, DVC skips the stage. (DVC also skips it if dvc.lock lists parameters that dvc.yaml no longer declares.)
    """
    locked = _load("dvc.lock").get(stage)
    if locked is None or locked["cmd"] != commands()[stage]:
        return False
    recorded = {item["path"]: item["md5"] for item in locked.get("deps", []) + locked.get("outs", [])}
    paths = declared(stage)
    wanted = paths["deps"] + paths["outs"]
    if set(recorded) != set(wanted) or md5s(wanted) != recorded:
        return False
    params = {}
    for file, names in _declared_params(stage).items():
        values = _read(Path(file))
        params[file] = {name: value_at(values, name) for name in names or values}
    return bool(params == locked.get("params", {}))


def value_at(params: dict[str, Any], name: str) -> Any:
    """Look up an entry of a stage's `params`: a section (`model`) or a value (`model.width`)."""
    section, _, key = name.partition(".")
    values = params.get(section)
    return values.get(key) if key and isinstance(values, dict) else values


def _declared_params(stage: str) -> dict[str, list[str]]:
    """Return {file: names} of the parameters that dvc.yaml declares for a stage; no names means the whole file."""
    params: dict[str, list[str]] = {}
    for item in _load("dvc.yaml")[stage].get("params", []):
        for file, names in item.items() if isinstance(item, dict) else [("params.yaml", [item])]:
            params.setdefault(file, []).extend(names or [])
    return params


def _load(file: str) -> dict[str, Any]:
    """Return the stages of dvc.yaml or dvc.lock by name; none if the file is missing or empty."""
    path = Path(file)
    stages = _read(path).get("stages", {}) if path.is_file() else {}
    if not isinstance(stages, dict):
        raise PipelineError(f"{file} is not valid: `stages` must map names to stages, got {stages!r}")
    return stages


def _read(path: Path) -> dict[str, Any]:
    """Read a YAML file.

    Raises:
        PipelineError: the file is not YAML, for example after a merge with conflicts.
    """
    try:
        return load_yaml(path.read_text()) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise PipelineError(f"{path} is not valid YAML: {on_one_line(error)}") from None


def _path(item: str | dict[str, Any]) -> str:
    """Return the path of an entry: a path, or a path with settings, {path: {cache: false}}."""
    return item if isinstance(item, str) else next(iter(item))


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
