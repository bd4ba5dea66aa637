"""dvc.yaml against the code: an edit must rerun what it can change, and nothing else."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import PROJECT

DVC_YAML = yaml.safe_load((PROJECT / "dvc.yaml").read_text())
STAGES = DVC_YAML["stages"]
SECTIONS = {"data", "model", "train", "evaluate"}
# They cannot change an out: DVC tracks the values that params hands through, the others only watch.
OBSERVERS = {"params", "progress", "tracking"}
COMMANDS = {"run", "sync", "sweep", "grid", "dvc_engine", "ray_engine", "ray_node"}


def tree(module: str) -> ast.Module:
    return ast.parse((PROJECT / "pipeline" / f"{module}.py").read_text())


def imported(module: str) -> set[str]:
    """The modules of the pipeline that a module imports, type checking aside."""
    found = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "pipeline":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
            found.add((node.module or "").removeprefix("pipeline."))
    return found


def closure(module: str) -> set[str]:
    """The package, a stage's module and all it imports, directly or not, but observers and what only they import."""
    found, new = {module, "__init__"}, {module}
    while new:
        new = {name for module in new for name in imported(module)} - found - OBSERVERS
        found |= new
    return found


def paths(entries: list[Any]) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def outs(stage: str) -> set[str]:
    return set().union(*(paths(STAGES[stage].get(kind, [])) for kind in ("outs", "metrics", "plots")))


def path_constants(module: str) -> set[str]:
    """The values of all constants of a stage that are named …_PATH."""
    return {
        ast.literal_eval(node.value.args[0])
        for node in tree(module).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.endswith("_PATH")
        and isinstance(node.value, ast.Call)
    }


def params_read(module: str) -> set[str]:
    """What a stage's code names of params.yaml: `section` for all of `params.section`, `section.key` for a value."""
    chains = [ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)]
    names = {chain.removeprefix("params.") for chain in chains if chain.startswith("params.")}
    names = {name for name in names if name.split(".")[0] in SECTIONS}
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_imports(stage: str) -> None:
    """A stage depends on exactly the modules it imports."""
    declared = {path for path in paths(STAGES[stage]["deps"]) if path.endswith(".py")}
    assert declared == {f"pipeline/{module}.py" for module in closure(stage)}


@pytest.mark.parametrize("stage", STAGES)
def test_path_constants_are_the_files_read_and_written(stage: str) -> None:
    """The paths at a stage's top are its outs and its data dependencies, no more and no fewer."""
    data = {path for path in paths(STAGES[stage]["deps"]) if not path.endswith(".py")}
    assert path_constants(stage) == data | outs(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_declared_params_are_the_sections_read(stage: str) -> None:
    """A stage declares the sections that its code reads, or the only value that it reads of one."""
    read = params_read(stage)
    declared = set(STAGES[stage].get("params", []))
    assert {name.split(".")[0] for name in declared} == {name.split(".")[0] for name in read}
    for value in (name for name in declared if "." in name):
        assert {name for name in read if name.split(".")[0] == value.split(".")[0]} == {value}


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_reads_another_one_writes(stage: str) -> None:
    """Every data dependency is an out of some stage: nothing bypasses the pipeline."""
    data = {path for path in paths(STAGES[stage]["deps"]) if not path.endswith(".py")}
    assert data <= set().union(*map(outs, STAGES))


def test_stages_do_not_import_each_other() -> None:
    """Stages meet only through files."""
    for stage in STAGES:
        assert not closure(stage) & (set(STAGES) - {stage})


def test_observers_are_not_imported_for_results() -> None:
    """Only the stages import the observers, so no result can come out of them."""
    modules = {path.stem for path in (PROJECT / "pipeline").glob("*.py")}
    importers = {module for module in modules if imported(module) & {"tracking", "progress"}}
    assert importers <= {*STAGES, *COMMANDS}


def test_no_parameter_has_a_name_that_dvcs_run_cache_overlooks() -> None:
    """DVC leaves keys named `size` and `nfiles` out of its run-cache's hash, in parameters too: it would
    take a stage with another `size` from the cache."""
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    assert not {"size", "nfiles"} & {name for section in params.values() for name in section}


def test_what_git_keeps_is_not_in_dvcs_cache() -> None:
    """Everything under reports/ is `cache: false`, so that a fresh clone can compare it."""
    for stage in STAGES.values():
        for entry in [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]:
            path = entry if isinstance(entry, str) else next(iter(entry))
            assert (isinstance(entry, dict) and entry[path]["cache"] is False) == path.startswith("reports/"), path


def test_mlflow_is_opened_by_delivery_and_its_store_alone() -> None:
    """The stages and what they import do without mlflow, so nothing in them can wait for it or depend on it."""
    # mlflow_app runs in MLflow's server.
    importers = {path.stem for path in (PROJECT / "pipeline").glob("*.py") if "mlflow" in external_imports(path)}
    assert importers == {"compare", "delivery", "mlflow_app", "move_store", "server", "store", "sweep", "sync", "tidy"}
    for path in (PROJECT / "pipeline").glob("*.py"):
        at_the_top = [node for node in tree(path.stem).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(ast.unparse(node).startswith(("import mlflow", "from mlflow")) for node in at_the_top), path


def external_imports(path: Path) -> set[str]:
    """The packages that a module imports anywhere, type checking aside."""
    names = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_params_and_errors_import_neither_torch_nor_mlflow() -> None:
    """Validating parameters is instant: a review in CI needs no 5 GB of packages."""
    for module in ("params", "errors", "dvcfiles", "repository"):
        assert not external_imports(PROJECT / f"pipeline/{module}.py") & {"torch", "torchvision", "mlflow"}
