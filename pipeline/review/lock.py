"""Whether dvc.lock belongs to dvc.yaml and to the files of a commit: the stages that are out of date, and why."""

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
from pipeline.review.report import text


def without_links_to_outside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    try:
        return tarfile.data_filter(member, folder)
    except tarfile.FilterError:
        return None


def out_of_date(files: Path, with_outs: bool = True) -> dict[str, list[str]]:
    """The stages of a checkout whose entry in dvc.lock differs from dvc.yaml or from the files, with the reasons.

    Without `with_outs` only what the stages read counts, not what they wrote. Frozen stages count like others.
    Data and weights are not in git, so their absence is not a reason; dvc.lock must agree with itself about them.
    (`dvc status` does not report what dvc.lock lists and dvc.yaml does not, nor what frozen stages read;
    `dvc repro --dry --allow-missing` stops at the first stale stage whose data is missing.)
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
            reasons |= {label(file, name, files): ["in dvc.lock, not in dvc.yaml: delete it there"] for name in left}
        written = [Path(out.fs_path) for stage in stages if stage.cmd for out in stage.outs]
        for file in pipelines:
            for metric in (load_yaml(file.read_text()) or {}).get("metrics", []):
                path = Path(os.path.normpath(file.parent / metric))
                if not any(path.is_relative_to(out) for out in written):
                    name = str(file.relative_to(files))
                    reasons.setdefault(name, []).append(f"no stage writes the metrics `{path.relative_to(files)}`")
    return {name: why for name, why in reasons.items() if why}


def differences(stage: Stage, deps: list[Dependency], outs: list[Output], made: dict[str, Output]) -> list[str]:
    """In what the files differ from what is recorded of a stage. `made` are all outs by their absolute path."""
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
            reasons.append(f"`{path}` is another version than the one that dvc.lock has as an out")
        elif source is not None and source is item and item.metric and item.use_cache and not item.exists:
            reasons.append(f"`{path}` is a metric that git does not have; give it `cache: false`")
        elif all(out.exists for out in made.values() if out.use_cache and is_one_in_the_other(out, item)):
            # Not item.status(): of a cached file that git has too, it reports only that the cache lacks it.
            reasons += [f"`{path}` {state}" for state in item.workspace_status().values()]
    return reasons


def is_one_in_the_other(out: Output, item: Output) -> bool:
    """Whether an out is the item, a file in its folder, or the folder in which it lies."""
    paths = Path(out.fs_path), Path(item.fs_path)
    return paths[0].is_relative_to(paths[1]) or paths[1].is_relative_to(paths[0])


def undeclared(stage: PipelineStage, locked: dict[str, Any], with_outs: bool) -> list[str]:
    """What dvc.lock lists for a stage and dvc.yaml no longer declares. `dvc repro` leaves it there."""
    declared = {item.def_path: item for item in stage.deps}
    names = [dep["path"] for dep in locked.get("deps", []) if dep["path"] not in declared]
    for file, values in locked.get("params", {}).items():
        # A file without names is declared whole.
        kept = (declared[file].params or values) if file in declared else []
        names += [name for name in values if name not in kept]
    if with_outs:
        outs = {out.def_path for out in stage.outs}
        names += [out["path"] for out in locked.get("outs", []) if out["path"] not in outs]
    return [f"`{name}` is in dvc.lock, not in dvc.yaml" for name in names]


def changed_values(params: ParamsDependency) -> list[str]:
    """For each value that differs between dvc.lock and the file: `section.name` old → new."""
    old, new = params.hash_info.value or {}, params.read_params()
    reasons = []
    for name in params.params or {**new, **old}:
        if name not in old or name not in new:
            reasons.append(f"`{name}` is not in {params.def_path if name in old else 'dvc.lock'}")
        elif isinstance(old[name], dict) and isinstance(new[name], dict):
            keys = [key for key in new[name] | old[name] if old[name].get(key, ...) != new[name].get(key, ...)]
            reasons += [f"`{name}.{key}` {text(old[name].get(key))} → {text(new[name].get(key))}" for key in keys]
        elif old[name] != new[name]:
            reasons.append(f"`{name}` {text(old[name])} → {text(new[name])}")
    return reasons


@contextmanager
def checkout(files: Path) -> Iterator[Repo]:
    """DVC's view of a checkout without cache.

    Raises:
        PipelineError: DVC cannot read the pipeline.
    """
    (files / ".dvc").mkdir(exist_ok=True)
    # Its own cache folder for the site, or every review would leave one more in the user's.
    (files / ".dvc/config.local").write_text(f"[core]\n    no_scm = true\n    site_cache_dir = {files / '.dvc/site'}\n")
    try:
        with Repo(files) as repo:
            yield repo
    except DvcException as error:
        reason = on_one_line(error).replace(os.path.relpath(files) + "/", "")
        raise PipelineError(f"DVC cannot read the pipeline of the reviewed commit: {reason}") from None


def is_lock(content: bytes) -> bool:
    """Whether this can be read as a dvc.lock; an empty one, for none, can."""
    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError:
        return False
    return values is None or (isinstance(values, dict) and isinstance(values.get("stages", {}), dict))


def locked_stages(lock: Path) -> dict[str, Any]:
    return (load_yaml(lock.read_text()) or {}).get("stages", {}) if lock.is_file() else {}


def with_descendants(files: Path, stale: dict[str, list[str]]) -> dict[str, list[str]]:
    """The stale stages and those after them, in the pipeline's order."""
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
    """`train` for a stage of the root's dvc.yaml, `sub/dvc.yaml:train` for others."""
    return name if file.parent == root else f"{file.relative_to(root)}:{name}"


def label_of(stage: Stage) -> str:
    """A stage's label; of a .dvc file its path."""
    file, root = Path(stage.path), Path(stage.repo.root_dir)
    return label(file, stage.name, root) if isinstance(stage, PipelineStage) else str(file.relative_to(root))
