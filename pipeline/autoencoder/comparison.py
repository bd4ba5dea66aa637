"""The comparison: one HTML page with the same test images at every bottleneck size, the errors and a table.

The page needs no network. It holds the decoders with weights of 8 bits. comparison.html is the page without the data.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.autoencoder.model import AutoEncoder
from pipeline.autoencoder.page import arrays_of, fill, layers_of, shapes_of
from pipeline.autoencoder.splits import Split

TEMPLATE = Path(__file__).with_suffix(".html")
N_PER_DIGIT = 10


def comparison(title: str, models: dict[str, AutoEncoder], content: dict[str, Any], test: Split) -> str:
    """Return the page. It has the first N_PER_DIGIT test images of each digit, and their codes by each model.

    Args:
        models: by label, in the order in which they are shown.
        content: what `pipeline.sweep.compare.page_content` returns, a row for each label.
    """
    shown = np.concatenate([np.flatnonzero(test.labels == digit)[:N_PER_DIGIT] for digit in range(10)])
    pixels = torch.from_numpy(test.pixels()[shown])
    shapes, arrays = [], []
    for model in models.values():
        decoder = layers_of(model.decoder)
        shapes.append(shapes_of(decoder))
        with torch.no_grad():
            arrays += [*arrays_of(decoder), model.encode(pixels).numpy()]
    head = content | {"labels": list(models), "decoders": shapes, "n": len(shown)}
    return fill(TEMPLATE, title, head, [*arrays, test.labels[shown], test.images[shown]])
