"""Describe what decides a training's last bits besides code, data and parameters: versions, processor, threads."""

import os
import platform
from importlib.metadata import version

from pipeline.core.environment import cpu_name

# With these variables a user changes how the libraries compute. `DNNL_…` is oneDNN's older name for `ONEDNN_…`.
VARIABLES = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
CUDA_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")
PACKAGES = ("torch", "numpy", "scikit-learn", "matplotlib", "safetensors")


def fingerprint(device: str) -> dict[str, str]:
    """Return names and values that identify this process's environment on `device`, for example `cuda:0`."""
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
