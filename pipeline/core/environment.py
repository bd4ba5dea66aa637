"""reports/environment.json: the environment that produced the committed results."""

import json

from pipeline.core.files import write_out
from pipeline.core.repository import RECORD_PATH


def record(outs: dict[str, str], environment: dict[str, str]) -> None:
    """Write the environment that produced these outputs ({path: MD5}) to RECORD_PATH, which is in git.

    The file is not a DVC output, because it depends on the machine. If it already records the same hashes, and as
    much of the environment, it is left as it is, so that reproducing the results changes nothing.

    Raises:
        PipelineError: the file cannot be written.
    """
    before = recorded()
    if before["outs"] != outs or before["environment"].keys() != environment.keys():
        write_out(RECORD_PATH, json.dumps({"outs": outs, "environment": environment}, indent=2) + "\n")


def recorded() -> dict[str, dict[str, str]]:
    """Return what `record` wrote: `outs` and `environment`, both empty if the file is missing or damaged."""
    try:
        content = json.loads(RECORD_PATH.read_text())
        return {"outs": dict(content["outs"]), "environment": dict(content["environment"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {"outs": {}, "environment": {}}
