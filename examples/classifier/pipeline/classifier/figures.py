"""The confusion matrix."""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.core.files import write_out


def confusion(counts: np.ndarray, title: str) -> Figure:
    """Draw the confusion matrix `counts` [true class, predicted class]."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    ax = figure.subplots()
    ax.imshow(counts, cmap="Blues")
    for true, predicted in np.ndindex(*counts.shape):
        dark = counts[true, predicted] > counts.max() / 2
        color = "white" if dark else "black"
        ax.text(predicted, true, str(counts[true, predicted]), ha="center", va="center", color=color)
    classes = range(len(counts))
    ax.set_xticks(classes)
    ax.set_yticks(classes)
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    ax.set_title(title)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whose bytes depend only on the figure."""
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png", metadata={"Software": None})
    write_out(path, content.getvalue())
