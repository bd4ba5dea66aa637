"""What the last bits of a training depend on beyond code, data and parameters: versions, processor, threads."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

from pipeline.outs import write_out

RECORD_PATH = Path("reports/environment.json")
# With these a user makes the libraries compute otherwise. `DNNL_…` is oneDNN's older name for `ONEDNN_…`.
VARIABLES = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
CUDA_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")
PACKAGES = ("torch", "numpy", "scikit-learn", "matplotlib", "safetensors")


def fingerprint(device: str) -> dict[str, str]:
    """Names and values that tell two environments apart, those of this process on `device`, as in `cuda:0`."""
    import torch

    kind = torch.device(device).type
    variables = VARIABLES + (CUDA_VARIABLES if kind == "cuda" else ())
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": kind,
        "hardware": torch.cuda.get_device_name(device) if kind == "cuda" else cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        **{name: os.environ[name] for name in variables if name in os.environ},
    }


def record(outs: dict[str, str], device: str) -> None:
    """Note in RECORD_PATH, which is in git, the environment that made these outs ({path: MD5}).

    The file is no out, for it depends on the machine. One that already tells who made the very same bytes
    stays as it is, so that to reproduce them changes nothing.

    Raises:
        PipelineError: it cannot be written.
    """
    if recorded()["outs"] != outs:
        content = {"outs": outs, "environment": fingerprint(device)}
        write_out(RECORD_PATH, json.dumps(content, indent=2) + "\n")


def recorded() -> dict[str, dict[str, str]]:
    """What `record` noted: `outs` and `environment`, both empty where there is no such note."""
    try:
        content = json.loads(RECORD_PATH.read_text())
        return {"outs": dict(content["outs"]), "environment": dict(content["environment"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {"outs": {}, "environment": {}}


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
