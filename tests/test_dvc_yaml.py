"""Compare dvc.yaml with the code: an edit must rerun what it can change, and nothing else.

`python -m tests.test_dvc_yaml` writes the code files among dvc.yaml's deps from the imports.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[1]
STAGES = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
MACHINERY = {"core", "review", "server", "sweep", "tracking"}
# All code that can change a number is in the other folders or in the stages' scripts.
SCIENCE = tuple(
    f"{path.parent.name}/"
    for path in sorted(PROJECT.glob("pipeline/*/__init__.py"))
    if path.parent.name not in MACHINERY
)


def source(module: str) -> Path:
    """Return the file of a module of the pipeline, named by its path: `train`, `core/git`."""
    return PROJECT / "pipeline" / f"{module}.py"


def tree(module: str) -> ast.Module:
    return ast.parse(source(module).read_text())


def imports(module: str) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield a module's import statements, except those for type checking."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
        if node not in skipped and isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def imported(module: str) -> set[str]:
    """Return the modules of the pipeline that a module imports, except for type checking."""
    found = set()
    for node in imports(module):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("pipeline"):
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
    return found | {"__init__"} | {f"{name.partition('/')[0]}/__init__" for name in found if "/" in name}


def paths(entries: list[Any]) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def outs(stage: str) -> set[str]:
    return set().union(*(paths(STAGES[stage].get(kind, [])) for kind in ("outs", "metrics", "plots")))


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
    first, second, *_ = re.findall(r"      - pipeline/\S+\n", text)
    broken = text.replace(first, "", 1).replace(second, f"{second}      - pipeline/gone.py\n", 1)
    assert with_code_by_imports(broken) == text


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


if __name__ == "__main__":
    (PROJECT / "dvc.yaml").write_text(with_code_by_imports((PROJECT / "dvc.yaml").read_text()))
