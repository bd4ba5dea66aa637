"""The autoencoder in MLflow's format: it reconstructs and encodes images and decodes codes.

    model = mlflow.pyfunc.load_model("models:/…")
    model.predict(images)                                       # reconstructions
    model.predict(images, params={"task": "encode"})            # codes
    model.predict(codes, params={"task": "decode"})             # images
    model.predict(bytes_of_images, params={"white": 255.0})     # pixels 0…255 in and out

MLflow runs this file when it loads the model, and the weights are a safetensors file: nothing is unpickled.
"""

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow.pyfunc
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel
from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import pipeline
from pipeline.autoencoder.model import INPUT_SIZE, load_model

SCRIPT = "served_model.py"
TASKS = ("reconstruct", "encode", "decode")
# What load_model needs of this project.
CODE = (
    "__init__.py",
    "core/__init__.py",
    "core/errors.py",
    "core/files.py",
    "autoencoder/__init__.py",
    "autoencoder/model.py",
)
# There is no schema of the input, because MLflow knows only one, and images and codes differ in their width.
SIGNATURE = ModelSignature(
    outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
    params=ParamSchema(
        [ParamSpec("task", DataType.string, TASKS[0]), ParamSpec("white", DataType.double, 1.0)],
    ),
)
METADATA = {
    "input": f"images, [n, {INPUT_SIZE}] numbers in 0…white; for the task decode codes, [n, bottleneck size]",
    "output": f"images, float32 [n, {INPUT_SIZE}] in 0…white; for the task encode codes, float32 [n, bottleneck size]",
    "task": " | ".join(TASKS),
    "white": "the value of a white pixel: 1 for floats, 255 for bytes",
}


class ServedAutoencoder(PythonModel):
    """MLflow calls `load_context` once and `predict` for each batch."""

    def load_context(self, context: Any) -> None:
        self.model = load_model(context.artifacts["weights"])

    # No type hints, because MLflow would read them as a schema.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Do a task for a batch: a numpy array, a DataFrame or a list, of any length.

        Raises:
            MlflowException: the task is unknown, `white` is not positive, or the input has another shape, is not
                numeric, or is outside of its range. HTTP clients get status 400.
        """
        task, white = (params or {}).get("task", TASKS[0]), float((params or {}).get("white", 1))
        if task not in TASKS:
            raise refused(f"task is {task!r}, not one of {', '.join(TASKS)}")
        if not 0 < white < np.inf:
            raise refused(f"white is {white}, not a positive number")
        with torch.inference_mode():
            if task == "decode":
                codes = torch.from_numpy(matrix(model_input, self.model.architecture.bottleneck_size, "codes"))
                return (self.model.decode(codes) * white).numpy()
            pixels = matrix(model_input, INPUT_SIZE, "images")
            if pixels.size and not (pixels.min() >= 0 and pixels.max() <= white):
                hint = "" if white != 1 else "; for pixels 0…255 set the parameter white to 255"
                raise refused(f"pixels must be in 0…{white:g}, these are in {pixels.min():g}…{pixels.max():g}{hint}")
            images = torch.from_numpy(pixels) / white
            return self.model.encode(images).numpy() if task == "encode" else (self.model(images) * white).numpy()


def matrix(given: Any, width: int, what: str) -> np.ndarray:
    """Return a batch as float32 [n, width].

    Raises:
        MlflowException: it is not numeric, has another shape, or holds NaN or infinity.
    """
    try:
        # In C order, because a table comes in the other one, with which products round differently.
        values = np.array(given, np.float32, order="C")
    except (TypeError, ValueError):
        raise refused(f"{what} must be numbers, [n, {width}]") from None
    if values.size == 0:
        return np.zeros((0, width), np.float32)
    if values.ndim != 2 or values.shape[1] != width:
        raise refused(f"{what} must have the shape [n, {width}], these have {list(values.shape)}")
    if not np.isfinite(values).all():
        raise refused(f"{what} must be finite numbers")
    return values


def source(name: str) -> Path:
    """Return a file of this package; in the main repository if DVC has deleted the folder that this code came from."""
    return next(path for folder in pipeline.__path__ if (path := Path(folder, name)).is_file())


def refused(why: str) -> MlflowException:
    return MlflowException(why, INVALID_PARAMETER_VALUE)


def save_for_mlflow(weights: str, folder: str, description: Model) -> None:
    """Write the model in MLflow's format to `folder`, which must not exist, with the code that it needs.

    Raises:
        PipelineError: the file of the weights is damaged.
    """
    load_model(weights)
    packages = ("mlflow", "numpy", "safetensors", "torch")
    with TemporaryDirectory() as copies:
        for name in CODE:
            target = Path(copies, "pipeline", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source(name).read_bytes())
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(source(f"autoencoder/{SCRIPT}")),
            artifacts={"weights": weights},
            code_paths=[f"{copies}/pipeline"],
            signature=SIGNATURE,
            input_example=np.zeros((2, INPUT_SIZE), np.float32),
            metadata=METADATA,
            mlflow_model=description,
            pip_requirements=[f"{package}=={version(package)}" for package in packages],
        )
    # MLflow would record where the files lay on this machine.
    flavor = description.flavors[mlflow.pyfunc.FLAVOR_NAME]
    flavor["model_code_path"] = SCRIPT
    flavor["artifacts"]["weights"]["uri"] = flavor["artifacts"]["weights"]["path"]
    description.save(f"{folder}/MLmodel")


set_model(ServedAutoencoder())
