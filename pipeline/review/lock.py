"""Check dvc.lock against dvc.yaml and the files of a commit: list the stages that are out of date, and why."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from dvc.dependency import Dependency, ParamsDependency
from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc.stage import PipelineStage, Stage

from pipeline.core.errors import PipelineError, on_one_line
from pipeline.core.yaml_reader import load_yaml
from pipeline.review.report import format_value


def without_links_to_outside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    try:
        return tarfile.data_filter(member, folder)
    except tarfile.FilterError:
        return None


def out_of_date(files: Path, with_outs: bool = True) -> dict[str, list[str]]:
    """Return {stage: reasons} for the stages whose entry in dvc.lock differs from dvc.yaml or from the files.

    Without `with_outs` only the inputs of the stages are checked, not their outputs. Frozen stages are checked too.
    Data and weights are not in git, so they may be absent, but dvc.lock must agree with itself about their hashes.
    `dvc status` is not enough: it reports neither entries that are only in dvc.lock nor the inputs of frozen stages.
    `dvc repro --dry --allow-missing` stops at the first stale stage whose data is missing.
    """
    with checkout(files) as repo:
        stages = list(repo.index.stages)
        pipelines = list(files.rglob("dvc.yaml"))
        locks = {file: locked_stages(file.with_name("dvc.lock")) for file in pipelines}
        made = {out.fs_path: out for stage in stages for out in stage.outs}
        reasons = {}
        for stage in stages:
            if not isinstance(stage, PipelineStage):  # a .dvc file, which is its own lock
                reasons[label_of(stage)] = differences(stage, stage.deps if stage.cmd else [], stage.outs, made)
                continue
            locked = locks.get(Path(stage.path), {}).pop(stage.name, None)
            if locked is None:
                reasons[label_of(stage)] = ["not in dvc.lock"]
                continue
            outs = stage.outs if with_outs else []
            reasons[label_of(stage)] = differences(stage, stage.deps, outs, made) + undeclared(stage, locked, with_outs)
        for file, left in locks.items():
            reasons |= {label(file, name, files): ["not in dvc.yaml: delete it from dvc.lock"] for name in left}
        written = [Path(out.fs_path) for stage in stages if stage.cmd for out in stage.outs]
        for file in pipelines:
            for metric in (load_yaml(file.read_text()) or {}).get("metrics", []):
                path = Path(os.path.normpath(file.parent / metric))
                if not any(path.is_relative_to(out) for out in written):
                    name = str(file.relative_to(files))
                    reasons.setdefault(name, []).append(f"no stage writes the metrics `{path.relative_to(files)}`")
    return {name: why for name, why in reasons.items() if why}


def differences(stage: Stage, deps: list[Dependency], outs: list[Output], made: dict[str, Output]) -> list[str]:
    """List how a stage's files differ from its entry in dvc.lock. `made` maps absolute paths to all outputs."""
    reasons = ["changed command"] if stage.changed_stage() else []
    if stage.always_changed or stage.is_callback:
        reasons.append("always changed")
    for item in [*deps, *outs]:
        path, source = os.path.relpath(item.fs_path, stage.repo.root_dir), made.get(item.fs_path)
        if isinstance(item, ParamsDependency):
            reasons += changed_values(item)
        elif not item.hash_info:
            reasons.append(f"`{path}` is not in dvc.lock")
        elif source is not None and source.hash_info and source.hash_info.value != item.hash_info.value:
            reasons.append(f"`{path}` is not the version that dvc.lock records as an output")
        elif source is not None and source is item and item.metric and item.use_cache and not item.exists:
            reasons.append(f"`{path}` is a metric that is not in git; declare it with `cache: false`")
        elif all(out.exists for out in made.values() if out.use_cache and is_one_in_the_other(out, item)):
            # Not item.status(): for a cached file that is also in git it reports only that the cache lacks it.
            reasons += [f"`{path}` {state}" for state in item.workspace_status().values()]
    return reasons


def is_one_in_the_other(out: Output, item: Output) -> bool:
    """Whether an output is the item itself, a file in its folder, or a folder that contains it."""
    paths = Path(out.fs_path), Path(item.fs_path)
    return paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0])


def undeclared(stage: PipelineStage, locked: dict[str, Any], with_outs: bool) -> list[str]:
    """List what dvc.lock has for a stage but dvc.yaml no longer declares. `dvc repro` leaves it in dvc.lock."""
    declared = {item.def_path: item for item in stage.deps}
    names = [dep["path"] for dep in locked.get("deps", []) if dep["path"] not in declared]
    for file, values in locked.get("params", {}).items():
        # A file that dvc.yaml lists without names is declared as a whole.
        kept = (declared[file].params or values) if file in declared else []
        names += [name for name in values if name not in kept]
    if with_outs:
        outs = {out.def_path for out in stage.outs}
        names += [out["path"] for out in locked.get("outs", []) if out["path"] not in outs]
    return [f"`{name}` is in dvc.lock, not in dvc.yaml" for name in names]


def changed_values(params: ParamsDependency) -> list[str]:
    """Return "`section.name` old → new" for each value that differs between dvc.lock and the file."""
    old, new = params.hash_info.value or {}, params.read_params()
    reasons = []
    for name in params.params or {**new, **old}:
        if name not in old or name not in new:
            reasons.append(f"`{name}` is not in {params.def_path if name in old else 'dvc.lock'}")
        elif isinstance(old[name], dict) and isinstance(new[name], dict):
            keys = [key for key in new[name] | old[name] if old[name].get(key, ...) != new[name].get(key, ...)]
            reasons += [
                f"`{name}.{key}` {format_value(old[name].get(key))} → {format_value(new[name].get(key))}"
                for key in keys
            ]
        elif old[name] != new[name]:
            reasons.append(f"`{name}` {format_value(old[name])} → {format_value(new[name])}")
    return reasons


@contextmanager
def checkout(files: Path) -> Iterator[Repo]:
    """Open a checkout without a cache as a DVC repository.

    Raises:
        PipelineError: DVC cannot read the pipeline.
    """
    (files / ".dvc").mkdir(exist_ok=True)
    # Its own site cache: otherwise every review leaves a folder in the user's site cache.
    (files / ".dvc/config.local").write_text(f"[core]\n    no_scm = true\n    site_cache_dir = {files / '.dvc/site'}\n")
    try:
        with Repo(files) as repo:
            yield repo
    except DvcException as error:
        reason = on_one_line(error).replace(os.path.relpath(files) + "/", "")
        raise PipelineError(f"DVC cannot read the pipeline of the reviewed commit: {reason}") from None


def is_lock(content: bytes) -> bool:
    """Whether this can be read as a dvc.lock; empty content, which stands for a missing file, can."""
    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError:
        return False
    return values is None or (isinstance(values, dict) and isinstance(values.get("stages", {}), dict))


def locked_stages(lock: Path) -> dict[str, Any]:
    return (load_yaml(lock.read_text()) or {}).get("stages", {}) if lock.is_file() else {}


def with_descendants(files: Path, stale: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the stale stages and their descendants with the reasons, in the pipeline's order."""
    with checkout(files) as repo:
        graph = repo.index.graph
        before = {label_of(stage): {label_of(up) for up in graph.successors(stage)} for stage in graph}
    result: dict[str, list[str]] = {}
    for stage in TopologicalSorter(before).static_order():
        after = sorted(before[stage] & set(result))
        reasons = stale.get(stage, []) + ([f"after {', '.join(after)}"] if after else [])
        if reasons:
            result[stage] = reasons
    return result


def frozen_stages(files: Path) -> list[str]:
    with checkout(files) as repo:
        return [f"`{label_of(stage)}`" for stage in repo.index.stages if stage.frozen and stage.cmd]


def label(file: Path, name: str, root: Path) -> str:
    """Return `train` for a stage of the root's dvc.yaml, `sub/dvc.yaml:train` for others."""
    return name if file.parent == root else f"{file.relative_to(root)}:{name}"


def label_of(stage: Stage) -> str:
    """Return a stage's label; for a .dvc file its path."""
    file, root = Path(stage.path), Path(stage.repo.root_dir)
    return label(file, stage.name, root) if isinstance(stage, PipelineStage) else str(file.relative_to(root))
