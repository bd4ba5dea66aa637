"""The figures of an evaluation and of several models. Each function takes arrays and returns a matplotlib Figure.

Images are [n, 784] floats in 0…1, drawn as black ink on white. The digits have Petroff's ten colours, which people
with any common colour vision can distinguish (https://arxiv.org/abs/2107.02270).
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA

from pipeline.core.files import write_out

if TYPE_CHECKING:
    import pandas as pd

Decode = Callable[[np.ndarray], np.ndarray]  # codes [n, k] → images [n, 784]
DIGIT_COLORS = matplotlib.color_sequences["petroff10"]
DATASET_TITLES = {"mnist": "MNIST", "digits": "scikit-learn's digits"}
SIDE = 28
FADED = 0.2
# The region of the codes excludes the outermost 1 % on each side of each axis.
REGION_PERCENTILES = (1, 99)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whose bytes depend only on the figure: no date, no software version."""
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png", metadata={"Software": None})
    write_out(path, content.getvalue())


def reconstructions(
    context: str, pixels: np.ndarray, labels: np.ndarray, by_autoencoder: np.ndarray, by_pca: np.ndarray
) -> Figure:
    """Draw the first test image of each digit and its reconstructions by the autoencoder and PCA of the same size."""
    shown = [first_of(labels, digit) for digit in np.unique(labels)]
    rows = [
        ("original", pixels[shown], [f"digit {label}" for label in labels[shown]]),
        ("autoencoder", by_autoencoder[shown], _mse_captions(by_autoencoder[shown], pixels[shown])),
        ("PCA of the\nsame size", by_pca[shown], _mse_captions(by_pca[shown], pixels[shown])),
    ]
    return _image_grid(f"Reconstructions and their MSE per pixel\n{context}", rows)


def worst(context: str, pixels: np.ndarray, labels: np.ndarray, by_autoencoder: np.ndarray) -> Figure:
    """Draw the ten test images with the largest reconstruction MSE, largest first."""
    mse = ((by_autoencoder - pixels) ** 2).mean(axis=1)
    shown = np.argsort(-mse, kind="stable")[:10]
    rows = [
        ("original", pixels[shown], [f"digit {label}" for label in labels[shown]]),
        ("autoencoder", by_autoencoder[shown], _mse_captions(by_autoencoder[shown], pixels[shown])),
    ]
    return _image_grid(f"The ten worst reconstructions and their MSE per pixel\n{context}", rows)


def midpoints(
    context: str, pixels: np.ndarray, labels: np.ndarray, codes: np.ndarray, decode: Decode, n_pairs: int
) -> Figure:
    """Draw pairs of test images, and between them the mean of their pixels and the decoded mean of their codes.

    A pair is the first image of one digit and the first image of the digit three places later.
    """
    digits = np.unique(labels)
    left = [first_of(labels, digits[pair % len(digits)]) for pair in range(n_pairs)]
    right = [first_of(labels, digits[(pair + 3) % len(digits)]) for pair in range(n_pairs)]
    rows = [
        ("one image", pixels[left], None),
        ("midpoint\nof pixels", (pixels[left] + pixels[right]) / 2, None),
        ("midpoint\nof codes", decode((codes[left] + codes[right]) / 2), None),
        ("the other", pixels[right], None),
    ]
    return _image_grid(f"Half-way between two images\n{context}", rows)


def traversals(
    context: str, pixels: np.ndarray, codes: np.ndarray, shares: np.ndarray, decode: Decode, n_steps: int = 9
) -> Figure:
    """Draw what the decoder makes of the first test image's code when one latent dimension at a time moves.

    Args:
        shares: [k], the importance of each dimension. The ten most important ones are drawn, the first at the top.
        n_steps: the images in a row, from the dimension's 1st to its 99th percentile over the test codes.
    """
    rows: list[tuple[str, np.ndarray, list[str] | None]] = []
    for dimension in np.argsort(-shares, kind="stable")[:10]:
        low, high = np.percentile(codes[:, dimension], REGION_PERCENTILES)
        moved = np.repeat(codes[:1], n_steps, axis=0)
        moved[:, dimension] = np.linspace(low, high, n_steps)
        images = np.vstack([pixels[:1], decode(moved)])
        rows.append((f"dimension {dimension + 1}\n{shares[dimension]:+.0%}", images, None))
    title = "One latent dimension at a time, from its 1st to its 99th percentile. Left: the test image."
    order = "The most important dimension first, with the growth of the test MSE if it is fixed"
    return _image_grid(f"{title}\n{order}\n{context}", rows)


def learning_curves(context: str, history: "pd.DataFrame") -> Figure:
    """Draw the MSE of the training and of the validation images by epoch, and mark the epoch whose weights are kept.

    Args:
        history: the columns epoch, train_mse and valid_mse.
    """
    epoch, train_mse, valid_mse = (history[name].to_numpy() for name in ("epoch", "train_mse", "valid_mse"))
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    ax = figure.subplots()
    ax.plot(epoch, train_mse, color=DIGIT_COLORS[1], linestyle="--", label="training images, during the epoch")
    ax.plot(epoch, valid_mse, color=DIGIT_COLORS[0], label="validation images, after the epoch")
    best = int(np.argmin(valid_mse))
    kept = f"kept: epoch {epoch[best]:.0f}, validation MSE {valid_mse[best]:.5f}"
    ax.plot(epoch[best], valid_mse[best], "o", markersize=9, color=DIGIT_COLORS[2], label=kept)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:.3f}")
    ax.yaxis.set_minor_formatter("{x:.3f}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(f"Learning curves\n{context}", fontsize=13)
    ax.set_xlabel("epoch", fontsize=11)
    ax.set_ylabel("MSE per pixel (pixels 0…1)", fontsize=11)
    ax.legend(frameon=False)
    ax.grid(alpha=0.25, which="both")
    return figure


def errors(context: str, image_mse: np.ndarray) -> Figure:
    """Draw how the test images' MSEs [n] are distributed, with their mean and the quantiles 5, 50, 95 and 99 %."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    ax = figure.subplots()
    ax.hist(image_mse, bins=60, color=DIGIT_COLORS[0], alpha=0.7)
    marks = {f"{share} %": float(np.percentile(image_mse, share)) for share in (5, 50, 95, 99)}
    marks["mean"] = float(image_mse.mean())
    for (name, value), style in zip(marks.items(), (":", "-", "--", "-.", "-"), strict=True):
        color = DIGIT_COLORS[2] if name == "mean" else "0.25"
        ax.axvline(value, color=color, linestyle=style, label=f"{name}: {value:.4f}")
    ax.set_title(f"The error of each test image\n{context}", fontsize=13)
    ax.set_xlabel("MSE per pixel (pixels 0…1)", fontsize=11)
    ax.set_ylabel(f"test images of {len(image_mse):,}", fontsize=11)
    ax.legend(title="quantiles and mean", frameon=False)
    return figure


def first_of(labels: np.ndarray, digit: int) -> int:
    """Return the index of the first image of a digit."""
    return int(np.flatnonzero(labels == digit)[0])


def _image_grid(title: str, rows: Sequence[tuple[str, np.ndarray, list[str] | None]]) -> Figure:
    """Draw rows of (name at the left, images [n, 784], caption under each image)."""
    n = len(rows[0][1])
    figure = Figure(
        figsize=(1.4 + n, 0.8 + sum(1.0 if captions is None else 1.2 for *_, captions in rows)), layout="constrained"
    )
    figure.suptitle(title, fontsize=13)
    axes = figure.subplots(len(rows), n, squeeze=False)
    for row, (name, images, captions) in enumerate(rows):
        for column, image in enumerate(images):
            ax = axes[row, column]
            ax.imshow(image.reshape(SIDE, SIDE), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_color("0.85")
            if captions is not None:
                ax.set_xlabel(captions[column], fontsize=10, labelpad=3)
        axes[row, 0].set_ylabel(name, fontsize=11, rotation=0, ha="right", va="center", labelpad=8)
    return figure


def _mse_captions(reconstructed: np.ndarray, pixels: np.ndarray) -> list[str]:
    return [f"{mse:.3f}" for mse in ((reconstructed - pixels) ** 2).mean(axis=1)]


def latent_scatter(context: str, codes: np.ndarray, labels: np.ndarray) -> Figure:
    """Draw codes [n, k] coloured by digit: k=1 as a strip for each digit, k=2 directly, k>2 on their main plane."""
    figure = Figure(figsize=(8.2, 6.4), layout="constrained")
    ax = figure.subplots()
    plane = LatentPlane(codes)
    points = plane.project(codes)
    if codes.shape[1] == 1:
        # Heights within a strip only separate the points. The fixed seed gives the same bytes every time.
        heights = labels + np.random.RandomState(0).uniform(-0.35, 0.35, len(labels))
        points = np.column_stack([points[:, 0], heights])
    size = float(np.clip(40_000 / len(labels), 5, 30))  # the fewer points, the larger they are
    for digit in range(10):
        x, y = points[labels == digit].T
        ax.scatter(x, y, s=size, alpha=0.6, linewidths=0, color=DIGIT_COLORS[digit], label=str(digit))
    for digit, (x, y) in label_places(points, labels).items():
        box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": DIGIT_COLORS[digit], "alpha": 0.85}
        ax.annotate(str(digit), (x, y), ha="center", va="center", fontsize=11, fontweight="bold", bbox=box)
    ax.set_title(f"Codes of the test images\n{context}", fontsize=13)
    ax.set_xlabel(plane.axis_names[0], fontsize=11)
    if codes.shape[1] == 1:
        ax.set_ylabel("digit", fontsize=11)
        ax.set_yticks(range(10))
    else:
        ax.set_ylabel(plane.axis_names[1], fontsize=11)
    legend = ax.legend(
        title="digit", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=np.sqrt(60 / size), frameon=False
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    ax.grid(alpha=0.25)
    return figure


def label_places(points: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    """Return where to write each label among `points` [n, 2]: where its points are densest, clear of other labels.

    On each axis the outermost tenth of a label's points is ignored, so that no label is written at an outlier.
    """
    clearance = np.array([0.03, 0.045]) * np.ptp(points, axis=0)
    places: dict[int, np.ndarray] = {}
    for label in np.unique(labels):
        own = points[labels == label]
        counts, *edges = np.histogramdd(own, bins=20, range=np.percentile(own, (5, 95), axis=0).T)
        for cell in np.argsort(-counts, axis=None, kind="stable"):
            index = np.unravel_index(cell, counts.shape)
            place = np.array([edge[i : i + 2].mean() for edge, i in zip(edges[0], index, strict=True)])
            if all((np.abs(place - other) > clearance).any() for other in places.values()):
                break
        places[int(label)] = place
    return places


def decoded_manifold(context: str, codes: np.ndarray, decode: Decode, size: int) -> Figure:
    """Draw a size × size grid of decoded codes over the region that the test codes occupy (k=1: a strip).

    The axes are latent coordinates. A cell without a test code is faded, because the decoder never had to produce an
    image there.
    """
    plane = LatentPlane(codes)
    points = plane.project(codes)
    low, high = np.percentile(points, REGION_PERCENTILES, axis=0)
    edges = [np.linspace(start, stop, size + 1) for start, stop in zip(low, high, strict=True)]
    centres = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    grid = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1)  # [columns, rows, 2], or [columns, 1]
    occupied = np.histogramdd(points, bins=edges)[0].reshape(size, -1) > 0
    ink = decode(plane.lift(grid.reshape(-1, len(edges)))).clip(0, 1).reshape(*occupied.shape, SIDE, SIDE)
    ink = ink * np.where(occupied, 1, FADED)[:, :, None, None]
    # [column, row, y, x] → [row from the top, y, column, x]
    picture = ink.transpose(1, 2, 0, 3)[::-1].reshape(-1, size * SIDE)

    figure = Figure(figsize=(8, 8.7) if len(edges) == 2 else (12, 2.1), layout="constrained")
    ax = figure.subplots()
    extent = (low[0], high[0], low[-1], high[-1])
    ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1, extent=extent, aspect="auto", interpolation="nearest")
    share = REGION_PERCENTILES[1] - REGION_PERCENTILES[0]
    region = f"The decoder's images over the middle {share} % of the codes on each axis"
    figure.suptitle(f"{region}\n(faded: no code there)\n{context}", fontsize=13)
    ax.set_xlabel(plane.axis_names[0], fontsize=11)
    if len(edges) == 2:
        ax.set_ylabel(plane.axis_names[1], fontsize=11)
    else:
        ax.set_yticks([])
    return figure


class LatentPlane:
    """The one or two axes on which codes [n, k] are drawn: their own for k ≤ 2, else their main plane.

    The main plane contains the codes' mean and is spanned by their first two principal components.
    """

    def __init__(self, codes: np.ndarray):
        self.dimensions = codes.shape[1]
        if self.dimensions <= 2:
            self.axis_names = [f"latent dimension {axis + 1} (arbitrary units)" for axis in range(self.dimensions)]
        else:
            self._pca = PCA(n_components=2, svd_solver="covariance_eigh").fit(codes.astype(np.float64))
            self.axis_names = [
                f"principal component {axis + 1} of the codes ({share:.0%} of their variance)"
                for axis, share in enumerate(self._pca.explained_variance_ratio_)
            ]

    def project(self, codes: np.ndarray) -> np.ndarray:
        """Map codes [n, k] to points [n, 1 or 2] of the plane."""
        return codes if self.dimensions <= 2 else self._pca.transform(codes.astype(np.float64))

    def lift(self, points: np.ndarray) -> np.ndarray:
        """Map points [n, 1 or 2] of the plane to codes [n, k]."""
        return points if self.dimensions <= 2 else self._pca.inverse_transform(points)


def reconstructions_by_model(pixels: np.ndarray, by_model: dict[str, np.ndarray]) -> Figure:
    """Draw test images and, below them, each model's reconstructions with its label; all are [10, 784] in 0…1."""
    image = np.concatenate([pixels, *by_model.values()]).reshape(-1, 10, SIDE, SIDE)
    figure = Figure(figsize=(8, 0.65 * len(image) + 0.6), layout="constrained")
    ax = figure.subplots()
    ax.imshow(image.transpose(0, 2, 1, 3).reshape(-1, 10 * SIDE), cmap="gray_r", vmin=0, vmax=1)
    ax.set_yticks((np.arange(len(image)) + 0.5) * SIDE, ["original", *by_model])
    ax.set_xticks([])
    ax.tick_params(length=0, labelsize=11)
    ax.spines[:].set_visible(False)
    ax.set_title("The first test image of each digit, and its reconstructions", fontsize=13)
    return figure
