"""reports/environment.json: in which environment the committed results were made."""

import json
from pathlib import Path

from pipeline.core.files import write_out

RECORD_PATH = Path("reports/environment.json")


def record(outs: dict[str, str], environment: dict[str, str]) -> None:
    """Note in RECORD_PATH, which is in git, the environment that made these outs ({path: MD5}).

    The file is no out, for it depends on the machine. One that already tells who made the very same bytes
    stays as it is, so that to reproduce them changes nothing.

    Raises:
        PipelineError: it cannot be written.
    """
    if recorded()["outs"] != outs:
        write_out(RECORD_PATH, json.dumps({"outs": outs, "environment": environment}, indent=2) + "\n")


def recorded() -> dict[str, dict[str, str]]:
    """What `record` noted: `outs` and `environment`, both empty where there is no such note."""
    try:
        content = json.loads(RECORD_PATH.read_text())
        return {"outs": dict(content["outs"]), "environment": dict(content["environment"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {"outs": {}, "environment": {}}
