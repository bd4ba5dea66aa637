"""What dvc.yaml declares and dvc.lock records about the stages, read without DVC: here, or in a commit.

Inside a stage DVC cannot be asked: it holds its lock while the stage runs.
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
    """The paths that dvc.yaml declares for a stage: {'deps': […], 'outs': […]}, metrics and plots among the outs."""
    entry = _load("dvc.yaml")[stage]
    return {"deps": [_path(item) for item in entry.get("deps", [])], "outs": outs_of(entry)}


def outs_of(entry: dict[str, Any]) -> list[str]:
    """The paths of all that a stage writes, by its entry in dvc.yaml."""
    return [_path(item) for kind in ("outs", "metrics", "plots") for item in entry.get(kind, [])]


def commands() -> dict[str, str]:
    """{stage: command} of dvc.yaml."""
    return {stage: entry["cmd"] for stage, entry in _load("dvc.yaml").items()}


def all_stages() -> list[str]:
    """The names of dvc.yaml's stages."""
    return list(_load("dvc.yaml"))


def all_outs() -> set[str]:
    """Every path that some stage of dvc.yaml writes."""
    return {path for stage in all_stages() for path in declared(stage)["outs"]}


def locked_outs() -> dict[str, str]:
    """{path: MD5} of every out that dvc.lock records."""
    return {out["path"]: out["md5"] for stage in _load("dvc.lock").values() for out in stage.get("outs", [])}


def lock_at(commit: str) -> dict[str, Any]:
    """What dvc.lock holds in a commit; empty where it is not in it."""
    return load_yaml(file_at(commit, "dvc.lock") or "") or {}


def outs_at(commit: str, stage: str) -> dict[str, str]:
    """{path: MD5} of what a stage wrote, by a commit's dvc.lock; empty where that does not say."""
    entry = lock_at(commit).get("stages", {}).get(stage) or {}
    return {out["path"]: out["md5"] for out in entry.get("outs", [])}


def contradictions(locked: dict[str, Any]) -> list[tuple[str, str]]:
    """(stage, path) of every dependency whose hash differs from that of the out of the same path.

    As after `dvc exp run train`: evaluate's entry is still that of other weights. `locked` are dvc.lock's stages.
    """
    made = {out["path"]: out.get("md5") for stage in locked.values() for out in stage.get("outs", [])}
    return [
        (name, dep["path"])
        for name, stage in locked.items()
        for dep in stage.get("deps", [])
        if made.get(dep["path"], dep.get("md5")) != dep.get("md5")
    ]


def md5s(paths: list[str]) -> dict[str, str]:
    """{path: MD5} as DVC computes them, of the files that exist."""
    return {path: _md5(Path(path)) for path in paths if Path(path).is_file()}


def stages_without(names: Iterable[str]) -> list[str]:
    """The stages that no parameter of these dotted names reaches, in dvc.yaml's order: neither they nor what they
    read depend on one."""
    changed = list(names)
    reached = with_descendants({stage for stage in all_stages() if any(declares(stage, name) for name in changed)})
    return [stage for stage in all_stages() if stage not in reached]


def declares(stage: str, name: str) -> bool:
    """Whether dvc.yaml lists this parameter of params.yaml, by its dotted name, or its section for a stage."""
    sections = _declared_params(stage).get("params.yaml")
    return sections == [] or any(name == section or name.startswith(f"{section}.") for section in sections or [])


def with_descendants(stages: set[str]) -> set[str]:
    """These stages, and those that read what they write, directly or not."""
    return _reachable(stages, _edges())


def with_ancestors(stages: set[str]) -> set[str]:
    """These stages, and those that write what they read, directly or not."""
    return _reachable(stages, {(reader, writer) for writer, reader in _edges()})


def _edges() -> set[tuple[str, str]]:
    """(a, b) of each two stages of which b reads what a writes: the same path, or one inside the other."""
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
    """{path: MD5} for a hash that survives a move of code: of Python files the contents alone, under `code`."""
    code = sorted(md5 for path, md5 in files.items() if path.endswith(".py"))
    return {path: md5 for path, md5 in files.items() if not path.endswith(".py")} | {"code": code}


def is_up_to_date(stage: str) -> bool:
    """Whether dvc.lock's entry equals what dvc.yaml declares and the workspace holds: command, dependencies,
    parameters and outs.

    DVC skips the stage then. (It also skips it if dvc.lock lists parameters that dvc.yaml no longer declares.)
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
    """What a stage's entry under `params` names: a section (`model`) or one value (`model.bottleneck_size`)."""
    section, _, key = name.partition(".")
    values = params.get(section)
    return values.get(key) if key and isinstance(values, dict) else values


def _declared_params(stage: str) -> dict[str, list[str]]:
    """{file: names} of the parameters that dvc.yaml declares for a stage; a file without names is declared whole."""
    params: dict[str, list[str]] = {}
    for item in _load("dvc.yaml")[stage].get("params", []):
        for file, names in item.items() if isinstance(item, dict) else [("params.yaml", [item])]:
            params.setdefault(file, []).extend(names or [])
    return params


def _load(file: str) -> dict[str, Any]:
    """The stages of dvc.yaml or dvc.lock by name; none where the file is missing or empty."""
    path = Path(file)
    stages = _read(path).get("stages", {}) if path.is_file() else {}
    if not isinstance(stages, dict):
        raise PipelineError(f"{file} holds no stages, but {stages!r}")
    return stages


def _read(path: Path) -> dict[str, Any]:
    """A YAML file's values.

    Raises:
        PipelineError: it is not YAML, as after a merge with conflicts.
    """
    try:
        return load_yaml(path.read_text()) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise PipelineError(f"{path} is not valid YAML: {on_one_line(error)}") from None


def _path(item: str | dict[str, Any]) -> str:
    """An entry is a path, or a path with settings: {path: {cache: false}}."""
    return item if isinstance(item, str) else next(iter(item))


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
