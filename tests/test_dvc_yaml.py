"""Compare dvc.yaml with the code: an edit must rerun what it can change, and nothing else.

`python -m tests.test_dvc_yaml` writes the code files among dvc.yaml's deps from the imports.
"""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import PROJECT

DVC_YAML = yaml.safe_load((PROJECT / "dvc.yaml").read_text())
STAGES = DVC_YAML["stages"]
SECTIONS = {"data", "model", "train", "evaluate"}
# The science: all code that can change a number is in this folder or in the stages' scripts.
SCIENCE = "autoencoder/"


def source(module: str) -> Path:
    """Return the file of a module of the pipeline, named by its path: `train`, `core/git`."""
    return PROJECT / "pipeline" / f"{module}.py"


def all_modules() -> set[str]:
    folder = PROJECT / "pipeline"
    return {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.py")}


def tree(module: str) -> ast.Module:
    return ast.parse(source(module).read_text())


def imported(module: str) -> set[str]:
    """Return the modules of the pipeline that a module imports, except for type checking."""
    found = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
        if node in skipped or not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("pipeline"):
            continue
        folder = (node.module or "").removeprefix("pipeline").removeprefix(".").replace(".", "/")
        for alias in node.names:
            below = f"{folder}/{alias.name}".removeprefix("/")
            found.add(below if source(below).is_file() else folder)
    return found


def closure(stage: str) -> set[str]:
    """Return a stage's script, the science modules that it imports directly or indirectly, and their packages."""
    found, new = {stage}, {stage}
    while new:
        new = {name for module in new for name in imported(module) if name.startswith(SCIENCE)} - found
        found |= new
    return found | {"__init__"} | ({f"{SCIENCE}__init__"} if len(found) > 1 else set())


def paths(entries: list[Any]) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def outs(stage: str) -> set[str]:
    return set().union(*(paths(STAGES[stage].get(kind, [])) for kind in ("outs", "metrics", "plots")))


def path_constants(module: str) -> set[str]:
    """Return the values of a stage's constants that are named …_PATH."""
    return {
        ast.literal_eval(node.value.args[0])
        for node in tree(module).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id.endswith("_PATH")
        and isinstance(node.value, ast.Call)
    }


def params_read(module: str) -> set[str]:
    """Return the parts of params.yaml that a stage reads: `section` for all of `params.section`, else `section.key`."""
    chains = [ast.unparse(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)]
    names = {chain.removeprefix("params.") for chain in chains if chain.startswith("params.")}
    names = {name for name in names if name.split(".")[0] in SECTIONS}
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_imports(stage: str) -> None:
    """A stage depends on exactly its script and the science modules that it imports."""
    declared = {path for path in paths(STAGES[stage]["deps"]) if is_code(path)}
    assert declared == code_of(stage), "`python -m tests.test_dvc_yaml` writes dvc.yaml's deps from the imports"


def is_code(path: str) -> bool:
    return path.startswith("pipeline/")


def code_of(stage: str) -> set[str]:
    """Return the files of `closure`, and the page or script next to a module that has one."""
    files = {f"pipeline/{module}{suffix}" for module in closure(stage) for suffix in (".py", ".html", ".js")}
    return {path for path in files if (PROJECT / path).is_file()}


def with_code_by_imports(text: str) -> str:
    """Return dvc.yaml with the code deps that the imports require. Each stage must already list at least one."""
    lines, stage, written = [], "", set()
    for line in text.splitlines():
        if found := re.fullmatch(r"  (\w+):", line):
            stage = found[1]
        if not re.fullmatch(r"      - pipeline/\S+", line):
            lines.append(line)
        elif stage not in written:
            lines += [f"      - {path}" for path in sorted(code_of(stage))]
            written.add(stage)
    return "\n".join(lines) + "\n"


def test_the_deps_are_corrected_from_the_imports() -> None:
    """A dvc.yaml with a missing and an extra dep is corrected, and the committed one stays unchanged."""
    text = (PROJECT / "dvc.yaml").read_text()
    assert with_code_by_imports(text) == text
    broken = text.replace("      - pipeline/autoencoder/trainer.py\n", "").replace(
        "      - pipeline/prepare.py\n", "      - pipeline/autoencoder/gone.py\n"
    )
    assert broken != text
    assert with_code_by_imports(broken) == text


@pytest.mark.parametrize("stage", STAGES)
def test_path_constants_are_the_files_read_and_written(stage: str) -> None:
    """A stage's path constants are exactly its outputs and its data dependencies."""
    data = {path for path in paths(STAGES[stage]["deps"]) if not is_code(path)}
    assert path_constants(stage) == data | outs(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_declared_params_are_the_sections_read(stage: str) -> None:
    """A stage declares the sections that its code reads, or the single value that it reads from a section."""
    read = params_read(stage)
    declared = set(STAGES[stage].get("params", []))
    assert {name.split(".")[0] for name in declared} == {name.split(".")[0] for name in read}
    for value in (name for name in declared if "." in name):
        assert {name for name in read if name.split(".")[0] == value.split(".")[0]} == {value}


@pytest.mark.parametrize("stage", STAGES)
def test_every_data_dependency_is_an_output(stage: str) -> None:
    """Every data dependency is the output of a stage, so nothing bypasses the pipeline."""
    data = {path for path in paths(STAGES[stage]["deps"]) if not is_code(path)}
    assert data <= set().union(*map(outs, STAGES))


def test_no_parameter_has_a_name_that_dvcs_run_cache_ignores() -> None:
    """No parameter is named `size` or `nfiles`.

    DVC leaves these keys out of its run-cache's hash, in parameters too. It would take a stage with another `size` from
    the cache.
    """
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    assert not {"size", "nfiles"} & {name for section in params.values() for name in section}


def test_reports_are_in_git_and_not_in_dvcs_cache() -> None:
    """Exactly the outputs under reports/ are `cache: false`, so that a fresh clone can compare them."""
    for stage in STAGES.values():
        for entry in [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]:
            path = entry if isinstance(entry, str) else next(iter(entry))
            assert (isinstance(entry, dict) and entry[path]["cache"] is False) == path.startswith("reports/"), path


def test_mlflow_is_never_imported_at_the_top_of_a_module() -> None:
    """Only the listed modules import mlflow, and no stage does, so that no stage can wait for it or depend on it."""
    importers = {module for module in all_modules() if "mlflow" in external_imports(module)}
    tracking = {f"tracking/{name}" for name in ("delivery", "mlflow_app", "mlflow_writer", "store", "sync")}
    commands = {"server/__main__", "server/migrate", "sweep/__main__", "sweep/compare", "tidy"}
    assert importers == tracking | commands
    for module in all_modules():
        at_the_top = [node for node in tree(module).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(ast.unparse(node).startswith(("import mlflow", "from mlflow")) for node in at_the_top), module


def external_imports(module: str) -> set[str]:
    """Return the packages that a module imports anywhere, except for type checking."""
    names = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


if __name__ == "__main__":
    (PROJECT / "dvc.yaml").write_text(with_code_by_imports((PROJECT / "dvc.yaml").read_text()))
