"""reports/environment.json: the environment that produced the committed results."""

import json
import platform
from pathlib import Path

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


def cpu_name() -> str:
    """Return the processor's name, for example `AMD EPYC 9V74`, or at least its architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
