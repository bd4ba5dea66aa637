"""The figures show the right images and labels, and their bytes are always the same."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.autoencoder import figures
from tests.helpers import FIGURES, random_split

CONTEXT = "MNIST test set, bottleneck size 2"
TEST = random_split(120)
GENERATOR = np.random.default_rng(0)


def codes(k: int) -> np.ndarray:
    return GENERATOR.normal(size=(len(TEST), k)).astype(np.float32)


def decode(points: np.ndarray) -> np.ndarray:
    """Decode with a stand-in whose images differ from code to code."""
    return (np.abs(points.sum(axis=1, keepdims=True)) * np.linspace(0, 1, 784)) % 1


def draw(name: str, k: int = 2) -> Figure:
    pixels, blurred, darker = TEST.pixels(), TEST.pixels() * 0.5, TEST.pixels() * 0.25
    match name:
        case "reconstructions":
            return figures.reconstructions(CONTEXT, pixels, TEST.labels, blurred, darker)
        case "worst":
            return figures.worst(CONTEXT, pixels, TEST.labels, blurred)
        case "latent":
            return figures.latent_scatter(CONTEXT, codes(k), TEST.labels)
        case "traversals":
            return figures.traversals(CONTEXT, pixels, codes(k), np.arange(k), decode)
        case "learning":
            return figures.learning_curves(
                CONTEXT, pd.DataFrame({"epoch": [1, 2], "train_mse": [2, 1], "valid_mse": [2, 1]})
            )
        case "errors":
            return figures.errors(CONTEXT, np.linspace(0, 1, 100))
        case "midpoints":
            return figures.midpoints(CONTEXT, pixels, TEST.labels, codes(k), decode, n_pairs=6)
        case _:
            return figures.decoded_manifold(CONTEXT, codes(k), decode, size=5)


def tiles(figure: Figure) -> np.ndarray:
    """Return the images that the axes show, as one array."""
    return np.array([ax.get_images()[0].get_array() for ax in figure.axes])


@pytest.mark.parametrize(
    ("name", "rows", "columns"), [("reconstructions", 3, 10), ("worst", 2, 10), ("midpoints", 4, 6)]
)
def test_a_grid_has_its_tiles(name: str, rows: int, columns: int) -> None:
    """A grid has one non-blank tile for each image, a name for every row, and the context in its title."""
    figure = draw(name)
    shown = tiles(figure)
    assert shown.shape == (rows * columns, 28, 28)
    assert (shown.std(axis=(1, 2)) > 0).all()
    assert all(figure.axes[row * columns].get_ylabel() for row in range(rows))
    assert CONTEXT in figure.get_suptitle()


def test_reconstructions_show_one_image_of_each_digit() -> None:
    """The captions are the ten digits and the MSE of each reconstruction."""
    figure = draw("reconstructions")
    axes, shown = figure.axes, tiles(figure)
    assert [ax.get_xlabel() for ax in axes[:10]] == [f"digit {digit}" for digit in range(10)]
    first = TEST.pixels()[0]
    for row, name, share in ((1, "autoencoder", 0.5), (2, "PCA of the\nsame size", 0.25)):
        ax = axes[10 * row]
        assert ax.get_ylabel() == name
        np.testing.assert_allclose(shown[10 * row], share * first.reshape(28, 28), atol=1e-6)
        assert ax.get_xlabel() == f"{((share * first - first) ** 2).mean():.3f}"


def test_worst_shows_the_largest_errors_first() -> None:
    """The ten captions are the ten largest errors, in order."""
    errors = [float(ax.get_xlabel()) for ax in draw("worst").axes[10:]]
    mse = np.sort(((TEST.pixels() * 0.5) ** 2).mean(axis=1))[::-1][:10]
    assert errors == [round(float(value), 3) for value in mse]


def test_midpoints_lie_half_way() -> None:
    """The second row is the pixel-wise mean of the first and the last row."""
    first, pixel_mean, _, last = np.split(tiles(draw("midpoints")), 4)
    np.testing.assert_allclose(pixel_mean, (first + last) / 2, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_scatter_names_ten_digits_and_both_axes(k: int) -> None:
    """For every k the scatter has all points, ten legend entries and labelled axes."""
    ax = draw("latent", k).axes[0]
    assert sum(np.shape(points.get_offsets())[0] for points in ax.collections) == len(TEST)
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [str(digit) for digit in range(10)]
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert ("principal component" in ax.get_xlabel()) == (k > 2)


@pytest.mark.parametrize(("k", "rows"), [(1, 1), (2, 5), (5, 5)])
def test_the_manifold_is_a_grid_of_images_in_latent_coordinates(k: int, rows: int) -> None:
    """The manifold has size × size tiles (one row for k=1), over the region of the codes, on labelled axes."""
    ax = draw("manifold", k).axes[0]
    image = ax.get_images()[0]
    picture = image.get_array()
    assert picture is not None
    assert picture.shape == (rows * 28, 5 * 28)
    assert picture.std() > 0
    assert ax.get_xlabel()


def test_the_manifold_covers_the_middle_98_per_cent_of_each_axis() -> None:
    """An outlier on either axis does not widen the region, and the title names the share of codes."""
    points = np.random.default_rng(1).normal(size=(1000, 2))
    points[0] = [50, -50]
    figure = figures.decoded_manifold(CONTEXT, points, decode, 5)
    expected = np.percentile(points, (1, 99), axis=0).T.ravel()
    np.testing.assert_allclose(figure.axes[0].get_images()[0].get_extent(), expected)
    assert "middle 98 % of the codes on each axis" in figure.get_suptitle()


def test_the_manifold_is_the_right_way_up() -> None:
    """Each tile is decoded at its own coordinates: the first grows to the right, the second upwards."""
    corners = np.array([[x, y] for x in np.linspace(0, 1, 50) for y in np.linspace(0, 1, 50)])
    figure = figures.decoded_manifold(CONTEXT, corners, lambda z: np.repeat(z[:, :1] * 0.8 + z[:, 1:] * 0.2, 784, 1), 4)
    picture = figure.axes[0].get_images()[0].get_array()
    assert picture is not None
    bottom_left, bottom_right, top_left = picture[-1, 0], picture[-1, -1], picture[0, 0]
    assert bottom_left < top_left < bottom_right


def test_cells_without_codes_are_faded() -> None:
    """In a cell without test codes the image has a fifth of its ink."""
    diagonal = np.repeat(np.linspace(0, 1, 200)[:, None], 2, axis=1)
    figure = figures.decoded_manifold(CONTEXT, diagonal, lambda z: np.ones((len(z), 784)), 4)
    picture = figure.axes[0].get_images()[0].get_array()
    assert picture is not None
    assert picture[-1, 0] == picture[0, -1] == 1  # on the diagonal
    assert picture[0, 0] == picture[-1, -1] == pytest.approx(0.2)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_written_with_the_same_bytes(tmp_path: Path, name: str) -> None:
    """The file holds no date and no software version, and the picture is not blank."""
    global GENERATOR
    for file in ("a.png", "b.png"):
        GENERATOR = np.random.default_rng(0)
        figures.save_figure(draw(name), tmp_path / file)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert b"Software" not in (tmp_path / "a.png").read_bytes()
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.05


def test_a_label_is_placed_where_its_points_are_densest() -> None:
    """If a digit has two clusters, its label is at the larger one and not in the empty middle."""
    few, many = GENERATOR.normal([0, 0], 0.1, (30, 2)), GENERATOR.normal([5, 5], 0.1, (90, 2))
    places = figures.label_places(np.vstack([few, many]), np.full(120, 7))
    np.testing.assert_allclose(places[7], [5, 5], atol=0.5)


def test_no_label_is_placed_at_an_outlier() -> None:
    """A label avoids outliers even if another digit's label occupies the middle of the cloud."""
    cloud = np.vstack([GENERATOR.normal(size=(300, 2)), [[600, 600]]])
    places = figures.label_places(np.vstack([cloud, cloud]), np.repeat([3, 8], 301))
    assert all(np.abs(place).max() < 3 for place in places.values())


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_manifolds_title_fits(k: int) -> None:
    """No line of the title is wider than the figure."""
    figure = draw("manifold", k)
    figure.draw_without_rendering()
    (title,) = figure.texts
    box = title.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_labels_do_not_overlap() -> None:
    """Ten digits in the same place have their labels next to each other."""
    one_spot = np.tile(GENERATOR.normal(size=(200, 2)), (10, 1))
    places = list(figures.label_places(one_spot, np.repeat(np.arange(10), 200)).values())
    for index, place in enumerate(places):
        assert all((np.abs(place - other) > 0.1).any() for other in places[:index])


def test_lift_reverses_project() -> None:
    """Projecting and lifting returns the same codes if k ≤ 2 or if the codes lie in a plane."""
    for k in (1, 2):
        points = codes(k)
        plane = figures.LatentPlane(points)
        np.testing.assert_array_equal(plane.lift(plane.project(points)), points)
    flat = codes(2) @ GENERATOR.normal(size=(2, 6)).astype(np.float32)
    plane = figures.LatentPlane(flat)
    np.testing.assert_allclose(plane.lift(plane.project(flat)), flat, atol=1e-4)


def test_learning_curves_mark_the_epoch_that_is_kept() -> None:
    """Both curves are drawn, and the mark and the legend name the epoch with the lowest validation MSE."""
    history = pd.DataFrame({"epoch": [1, 2, 3, 4], "train_mse": [4, 3, 2, 1], "valid_mse": [0.5, 0.4, 0.3, 0.35]})
    ax = figures.learning_curves(CONTEXT, history).axes[0]
    train, valid, kept = ax.get_lines()
    np.testing.assert_array_equal(train.get_xydata(), history[["epoch", "train_mse"]])
    np.testing.assert_array_equal(valid.get_xydata(), history[["epoch", "valid_mse"]])
    np.testing.assert_array_equal(kept.get_xydata(), [[3, 0.3]])
    assert kept.get_label() == "kept: epoch 3, validation MSE 0.30000"
    assert "MSE" in ax.get_ylabel()


def test_the_distribution_of_errors_has_its_quantiles_and_mean() -> None:
    """The bars hold all images, and the lines are at the quantiles and the mean that the legend names."""
    image_mse = np.linspace(0, 1, 1001) ** 2
    ax = figures.errors(CONTEXT, image_mse).axes[0]
    assert sum(bar.get_height() for bar in ax.patches if isinstance(bar, Rectangle)) == 1001
    marked = {line.get_label(): np.ravel(line.get_xdata())[0] for line in ax.get_lines()}
    assert marked == {
        "5 %: 0.0025": pytest.approx(0.05**2),
        "50 %: 0.2500": pytest.approx(0.25),
        "95 %: 0.9025": pytest.approx(0.95**2),
        "99 %: 0.9801": pytest.approx(0.99**2),
        f"mean: {image_mse.mean():.4f}": pytest.approx(image_mse.mean()),
    }


def test_traversals_move_one_dimension_at_a_time() -> None:
    """A row starts with the image; then its dimension goes from percentile 1 to 99 and the others stay."""
    points = np.random.default_rng(1).normal(size=(1000, 12))
    shares = np.arange(12) / 10
    decoded: list[np.ndarray] = []

    def record(moved: np.ndarray) -> np.ndarray:
        decoded.append(moved)
        return decode(moved)

    figure = figures.traversals(CONTEXT, TEST.pixels(), points, shares, record)
    assert [ax.get_ylabel() for ax in figure.axes[::10]] == [
        f"dimension {number}\n{shares[number - 1]:+.0%}" for number in range(12, 2, -1)
    ]
    np.testing.assert_array_equal(tiles(figure)[::10], np.repeat(TEST.pixels()[:1].reshape(1, 28, 28), 10, axis=0))
    for moved, dimension in zip(decoded, range(11, 1, -1), strict=True):
        low, high = np.percentile(points[:, dimension], (1, 99))
        np.testing.assert_allclose(moved[:, dimension], np.linspace(low, high, 9))
        others = np.delete(moved, dimension, axis=1)
        np.testing.assert_array_equal(others, np.repeat(np.delete(points[:1], dimension, axis=1), 9, axis=0))
