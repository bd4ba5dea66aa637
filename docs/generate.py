"""Write the reference pages from the code: docs/parameters.md, docs/metrics.md and docs/commands.md.

    make docs      (python -m docs.generate)

A test compares the pages with what this module makes of the code.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.metrics import Metric, parse_metrics
from pipeline.params import Params

ROOT = Path(__file__).resolve().parents[1]
# The flags of the single-file script that this project started from.
ORIGINAL_FLAGS = {
    "--gpu_id": "`train.device`",
    "--n_epochs": "`train.n_epochs`",
    "--batch_size": "`train.batch_size`",
    "--train_ratio": "`data.train_ratio`",
    "--n_layers": "`model.n_layers`",
    "--btl_size": "`model.bottleneck_size`",
    "--use_dropout": "`model.regularizer`",
    "--dropout_p": "`model.dropout_p`",
    "--model_fn": "the fixed output `models/autoencoder.safetensors`",
    "--verbose": "the environment variable `PIPELINE_VERBOSE`, so that changing it never triggers a rerun",
}
COMMANDS = {
    "make run": "pipeline.run",
    "make sweep": "pipeline.sweep",
    "make compare": "pipeline.sweep.compare",
    "make review": "pipeline.review",
    "make verify": "pipeline.review.verify",
    "make ui": "pipeline.tracking.ui",
    "make sync": "pipeline.tracking.sync",
    "": "pipeline.tracking.find_run",
    "make tidy": "pipeline.tidy",
    "make server": "pipeline.server",
    "make move-store": "pipeline.server.migrate",
}
VARIABLES = {
    "PIPELINE_VERBOSE": "`0` silences the stages' progress",
    "PIPELINE_TRACKING": "`0` switches MLflow tracking off",
    "MNIST_MIRROR": "http(s) addresses of folders with MNIST's four `.gz` files, separated by spaces or commas",
    "MLFLOW_TRACKING_URI": "another MLflow store or server (default: `mlflow.db` in the repository)",
    "MLFLOW_EXPERIMENT_NAME": "another MLflow experiment (default: the `name` in `pipeline/experiment.py`)",
    "MLFLOW_RUN_NAME": "the run's name",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "for `make server`: the password of the user `admin`",
}
# Its experiment, on this project's network.
ORIGINAL_RECIPE = """The script evaluated `n_layers` of 10, trained by Adam at a constant rate. Its recipe on this
project's network:

```sh
dvc exp run -S model.n_layers=10 -S train.schedule=constant -S train.lr=0.001 \\
    -S train.weight_decay=0.0 -S train.adam_beta2=0.999
```"""
NOTICE = "<!-- `make docs` writes this page. -->"


def main() -> None:
    for name, text in pages().items():
        (ROOT / "docs" / name).write_text(text)


def pages() -> dict[str, str]:
    """{file under docs/: content}"""
    return {"parameters.md": parameters(), "metrics.md": metrics(), "commands.md": commands()}


def parameters() -> str:
    """The page of params.yaml: for each section its values, what is allowed, what they mean."""
    defaults = yaml.safe_load((ROOT / "params.yaml").read_text())
    lines = [
        "# Parameters",
        "",
        NOTICE,
        "",
        "`params.yaml` holds every number that the pipeline reads. It is checked before a stage runs. Unknown keys,",
        "missing keys and wrong types are errors, and all of them are listed at once. A stage runs again if a section",
        "that it reads has changed. Set a value for one run with `dvc exp run -S train.lr=0.002`.",
    ]
    definitions = Params.model_json_schema()["$defs"]
    for section, field in Params.model_fields.items():
        assert field.annotation is not None
        schema = definitions[field.annotation.__name__]
        lines += ["", f"## {section}", "", schema["description"], ""]
        lines += ["| parameter | default | allowed | meaning |", "|---|---|---|---|"]
        for key, rules in schema["properties"].items():
            default = "null" if defaults[section][key] is None else defaults[section][key]
            lines.append(f"| `{section}.{key}` | `{default}` | {allowed(rules)} | {rules['description']} |")
    lines += ["", "## Flags of the original script", "", "| flag | here |", "|---|---|"]
    lines += [f"| `{flag}` | {here} |" for flag, here in ORIGINAL_FLAGS.items()]
    lines += ["", ORIGINAL_RECIPE, "", "## Environment variables", "", "| variable | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in VARIABLES.items()]
    return "\n".join([*lines, ""])


def allowed(rules: dict[str, Any]) -> str:
    """What a JSON schema allows, in words: `0 < x < 1`, `2 … 50`, `auto` or a number."""
    if "anyOf" in rules:
        return " or ".join(allowed(each) for each in rules["anyOf"])
    if values := rules.get("enum") or rules.get("examples"):
        return ", ".join(f"`{value}`" for value in values)
    if "const" in rules:
        return f"`{rules['const']}`"
    if rules["type"] == "null":
        return "`null`"
    if rules["type"] == "array":
        return f"a list, each {allowed(rules['items'])}"
    low, high = rules.get("minimum"), rules.get("maximum")
    above, below = rules.get("exclusiveMinimum"), rules.get("exclusiveMaximum")
    if rules["type"] == "integer":
        last = high if high is not None else None if below is None else f"{below - 1:,}"
        return f"{low} …" if last is None else f"{low} … {last}"
    start = f"{low} ≤ " if low is not None else f"{above} < " if above is not None else ""
    end = f" ≤ {high}" if high is not None else f" < {below}" if below is not None else ""
    return f"{start}x{end}"


def metrics() -> str:
    """The page of metrics.yaml: what each metric is called, which way is better, how far it may move."""
    entries = parse_metrics((ROOT / "metrics.yaml").read_bytes())
    lines = [
        "# Metrics",
        "",
        NOTICE,
        "",
        "The stages write metrics to `reports/*.json`. MLflow has them under the same names, with slashes for dots.",
        "`metrics.yaml` defines which way is better and how far a metric may move. `make review` fails if a metric",
        "gets worse by more. `make verify` allows as much to either side. A metric without a direction is shown and",
        "never judged. A star stands for any text, and the first entry that fits a name counts.",
        "",
        "Choose by the metric marked *select*. Report the one marked *report*.",
        "",
        "| metric | better | may move by | in `make compare` | role |",
        "|---|---|---|---|---|",
    ]
    for name, metric in entries.items():
        better = metric.better or "not judged"
        margin = metric.allowed if metric.better else ""
        lines.append(f"| `{name}` | {better} | {margin} | {shown(metric)} | {metric.role or ''} |")
    return "\n".join([*lines, ""])


def shown(metric: Metric) -> str:
    """Where `make compare` shows a metric."""
    places = [
        f"column *{metric.label}*" if metric.label else "",
        f"line *{metric.line}*" if metric.line else "",
        f"note *{metric.note}*" if metric.note else "",
    ]
    return ", ".join(filter(None, places)) or (f"`{metric.column}` in table.csv" if metric.column else "")


def commands() -> str:
    """The page of commands: the Makefile's targets, and each command's own help."""
    makefiles = "".join((ROOT / name).read_text() for name in ("Makefile", "project.mk"))
    help_lines = re.findall(r"^([a-z-]+):.*## (.*)$", makefiles, re.MULTILINE)
    lines = ["# Commands", "", NOTICE, "", "| command | does |", "|---|---|"]
    lines += [f"| `make {target}` | {cell(does)} |" for target, does in help_lines]
    for command, module in COMMANDS.items():
        by = f", by `{command}`" if command else ""
        lines += ["", f"## python -m {module}", "", f"`python -m {module}`{by}", "", "```text", help_of(module), "```"]
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    lines += ["", "## The stages", "", "DVC runs them: `dvc repro`.", "", "| stage | command | does |", "|---|---|---|"]
    lines += [f"| `{name}` | `{stage['cmd']}` | {cell(stage['desc'])} |" for name, stage in stages.items()]
    return "\n".join([*lines, ""])


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def help_of(module: str) -> str:
    """A command's help without the usage, whose line breaks differ between Python's versions."""
    environment = os.environ | {"COLUMNS": "100", "PYTHON_COLORS": "0", "NO_COLOR": "1"}
    command = [sys.executable, "-m", module, "--help"]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    # As Python 3.13 and later write a short option with a value.
    shown = re.sub(r"(-\w) (\S+), (--[\w-]+) \2", r"\1, \3 \2", shown)
    docstring = ast.get_docstring(ast.parse(source_of(module).read_text())) or ""
    options = shown.partition("\noptions:")[2]
    arguments = shown.partition("\npositional arguments:\n")[2].partition("\noptions:")[0]
    parts = [docstring, f"arguments:\n{arguments.rstrip()}" if arguments else "", f"options:{options.rstrip()}"]
    return "\n\n".join(filter(None, parts))


def source_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


if __name__ == "__main__":
    main()
