"""The stages follow this project's conventions: constants for paths, declared parameters, no MLflow."""

import ast

import pytest

from tests.helpers import PROJECT
from tests.test_dvc_yaml import STAGES, imports, is_code, outs, paths, tree

SECTIONS = {"data", "model", "train", "evaluate"}


def all_modules() -> set[str]:
    folder = PROJECT / "pipeline"
    return {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.py")}


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


def test_mlflow_is_never_imported_at_the_top_of_a_module() -> None:
    """Only the listed modules import mlflow, and no stage does, so that no stage can wait for it or depend on it.

    MLflow itself runs the model's code, so that may import it at the top.
    """
    importers = {module for module in all_modules() if "mlflow" in external_imports(module)}
    tracking = {f"tracking/{name}" for name in ("delivery", "mlflow_app", "mlflow_writer", "store", "sync", "ui")}
    commands = {"server/__main__", "server/migrate", "sweep/__main__", "sweep/compare", "tidy"}
    served = "autoencoder/served_model"
    assert importers == tracking | commands | {served}
    for module in all_modules() - {served}:
        at_the_top = [node for node in tree(module).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(ast.unparse(node).startswith(("import mlflow", "from mlflow")) for node in at_the_top), module


def external_imports(module: str) -> set[str]:
    """Return the packages that a module imports anywhere, except for type checking."""
    names = set()
    for node in imports(module):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif node.module:
            names.add(node.module.split(".")[0])
    return names
