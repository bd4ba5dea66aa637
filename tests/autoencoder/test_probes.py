"""The classifiers and metrics of codes, on codes whose values are known."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from pipeline.autoencoder.metrics import DEAD, effective_rank, importance
from pipeline.autoencoder.probes import accuracies


def clusters(n: int, n_dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ten groups of points [n, n_dimensions], each around its own corner, and their labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 10
    corners = 10 * np.eye(10, n_dimensions)
    return (corners[labels] + generator.normal(size=(n, n_dimensions))).astype(np.float32), labels


def test_clusters_are_classified_and_noise_is_not() -> None:
    """Accuracy is 1 for ten distant clusters, and about 0.1 for labels unrelated to the codes."""
    codes, labels = clusters(500, 10, seed=0)
    test_codes, test_labels = clusters(200, 10, seed=1)
    assert accuracies(codes, labels, test_codes, test_labels) == {"logistic_regression": 1.0, "nearest_neighbours": 1.0}
    shuffled = np.random.default_rng(2).permutation(test_labels)
    noise = accuracies(codes, labels, test_codes, shuffled)
    assert all(0.02 < accuracy < 0.2 for accuracy in noise.values())


def test_only_neighbours_separate_concentric_rings() -> None:
    """A digit inside the ring of another digit is not linearly separable."""
    generator = np.random.default_rng(0)
    labels = np.arange(1000) % 2
    angle = generator.uniform(0, 2 * np.pi, 1000)
    codes = (1 + 4 * labels[:, None]) * np.column_stack([np.cos(angle), np.sin(angle)])
    accuracy = accuracies(codes[:800], labels[:800], codes[800:], labels[800:])
    assert accuracy["nearest_neighbours"] == 1
    assert accuracy["logistic_regression"] < 0.8


def test_the_majority_of_five_neighbours_counts() -> None:
    """Three of the five neighbours outvote the two nearest."""
    train_codes = np.array([[1], [-2], [3], [-4], [5], [50]], np.float32)
    labels = np.array([0, 0, 1, 1, 1, 0])
    found = accuracies(train_codes, labels, np.zeros((1, 1), np.float32), np.array([1]))
    assert found["nearest_neighbours"] == 1


def test_logistic_regression_does_not_depend_on_units() -> None:
    """Codes that are a million times smaller or far from zero are classified equally well."""
    codes, labels = clusters(500, 10, seed=0)
    test_codes, test_labels = clusters(200, 10, seed=1)
    for scale, shift in ((1e-6, 0), (1, 1000)):
        found = accuracies(codes * scale + shift, labels, test_codes * scale + shift, test_labels)
        assert found["logistic_regression"] == 1


def test_the_number_of_threads_does_not_change_accuracies() -> None:
    """Threads change no accuracy, even for codes unrelated to the digit, where a product's last bits decide."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(200, 200)) / np.arange(1, 201)[:, None] ** 2
    codes, test_codes = ((generator.normal(size=(n, 200)) @ mixing).astype(np.float32) for n in (2000, 10_000))
    labels, test_labels = (generator.integers(0, 10, n) for n in (2000, 10_000))
    found = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            found.append(accuracies(codes, labels, test_codes, test_labels))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("scales", "rank"),
    [([1, 1, 1, 1], 4), ([1, 1, 0, 0], 2), ([1, 1e-9, 1e-9, 1e-9], 1), ([3, 1, 0, 0], 0.75**-0.75 * 0.25**-0.25)],
)
def test_effective_rank_by_hand(scales: list[float], rank: float) -> None:
    """The rank is exp of the entropy of the directions' strengths, regardless of the codes' position and rotation."""
    columns = np.column_stack([np.ones(100), np.random.default_rng(0).normal(size=(100, 4))])
    basis = np.linalg.qr(columns)[0][:, 1:]  # orthonormal, each of mean 0
    codes = basis * np.array(scales)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    assert effective_rank(codes) == pytest.approx(rank, rel=1e-5)
    assert effective_rank(codes @ turn + [7, -3, 0, 1]) == pytest.approx(rank, rel=1e-5)


def test_codes_that_never_change_have_rank_zero() -> None:
    """Constant codes give 0, not a division by zero."""
    assert effective_rank(np.ones((5, 3), np.float32)) == 0


def test_a_dimension_that_the_decoder_ignores_is_dead() -> None:
    """A dimension that the decoder ignores is dead, however much it varies.

    A dimension of small variance on which the image depends is alive, and its importance is known. A dimension with a
    growth of 0.3 % is alive, and one with 0.03 % is dead.
    """
    generator = np.random.default_rng(0)
    scales = np.array([1, 0.001, 100, 1, 1])
    strengths = np.array([1, 1000, 0, 0.003**0.5, 0.0003**0.5])[:, None]
    codes = (generator.normal(size=(50, 5)) * scales).astype(np.float32)
    weights = (generator.normal(size=(5, 784)) * strengths).astype(np.float32)

    def decode(codes: np.ndarray) -> np.ndarray:
        return codes @ weights

    noise = generator.normal(size=(50, 784)).astype(np.float32)
    found = importance(codes, decode(codes) + noise, decode)
    assert list(found < DEAD) == [False, False, True, False, True]
    variance = codes[:, :2].var(axis=0) * (weights[:2] ** 2).mean(axis=1)
    assert found[:2] == pytest.approx(variance / (noise**2).mean(), rel=0.1)


def test_importance_does_not_depend_on_batches() -> None:
    """The growth equals the one computed over all images together, however many are decoded at once."""
    generator = np.random.default_rng(0)
    codes = (generator.normal(size=(2500, 3)) * np.linspace(0.1, 3, 2500)[:, None]).astype(np.float32)
    weights = generator.normal(size=(3, 784)).astype(np.float32)
    pixels = codes @ weights + generator.normal(size=(2500, 784)).astype(np.float32)
    expected = []
    for dimension in range(3):
        without = codes.copy()
        without[:, dimension] = codes[:, dimension].mean()
        expected.append(((without @ weights - pixels) ** 2).mean() / ((codes @ weights - pixels) ** 2).mean() - 1)
    assert importance(codes, pixels, lambda batch: batch @ weights) == pytest.approx(expected, rel=1e-4)
