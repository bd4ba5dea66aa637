"""Draw noisy points of a wave, and split them: float64 [n, 2], x in -1…1 and y."""

import io
from pathlib import Path

import numpy as np

from pipeline.core.errors import run_command
from pipeline.core.files import write_out
from pipeline.params import load_params


def main() -> None:
    params = load_params().data
    random = np.random.RandomState(params.split_seed)
    x = random.uniform(-1, 1, params.n_points)
    y = np.sin(3 * x) + 0.1 * random.standard_normal(params.n_points)
    for name, points in zip(("train", "valid", "test"), np.array_split(np.stack([x, y], 1), 3), strict=True):
        content = io.BytesIO()
        np.save(content, points)
        write_out(Path(f"data/prepared/{name}.npy"), content.getvalue())
    print(f"prepared {params.n_points} points of a {params.dataset}")


if __name__ == "__main__":
    run_command(main)
