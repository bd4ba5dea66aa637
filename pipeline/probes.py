"""What a code is worth beyond reconstruction: how well simple classifiers read the digit from it, and its size."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

N_NEIGHBOURS = 5
CLASSIFIERS = ("logistic_regression", "nearest_neighbours")
# The activations of as many images stay in the processor's cache.
BATCH_SIZE = 1000
# A latent dimension without which the error grows by less than this share is dead.
DEAD = 0.001


def accuracies(
    train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """The share of test codes [m, k] whose digit is told rightly by classifiers fitted on training codes [n, k].

    Logistic regression on standardised codes, L2-regularised with scikit-learn's C = 1: are digits linearly
    separable? And the majority of the five nearest training codes by Euclidean distance: are alike codes alike?
    Both are asked at once, each from a thread of its own.
    """

    def accuracy(classifier: ClassifierMixin) -> float:
        return float(classifier.fit(train_codes, train_labels).score(test_codes, test_labels))

    classifiers = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        KNeighborsClassifier(N_NEIGHBOURS),
    )
    # The threads of one matrix product decide its last bits; how many products are under way at once does not.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor() as threads:
        return dict(zip(CLASSIFIERS, threads.map(accuracy, classifiers), strict=True))


def effective_rank(codes: np.ndarray) -> float:
    """Between 1 and k: in how many directions codes [n, k] vary, weighted by how much.

    The exponential of the entropy of the centred codes' singular values, scaled to sum 1
    (Roy and Vetterli, The effective rank, EUSIPCO 2007). 0 where the codes do not vary at all.
    """
    centred = codes.astype(np.float64) - codes.mean(axis=0, dtype=np.float64)
    singular_values = np.sqrt(np.linalg.eigvalsh(centred.T @ centred).clip(0))
    if singular_values.sum() == 0:
        return 0.0
    shares = singular_values / singular_values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def importance(codes: np.ndarray, pixels: np.ndarray, decode: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """[k]: by what share the MSE of images [n, 784] from codes [n, k] grows with one latent dimension at its mean.

    `decode` turns codes into images; several threads call it at once.
    """
    means = codes.mean(axis=0)

    def squared_error(fixed_dimension: int | None) -> float:
        total = 0.0
        for start in range(0, len(codes), BATCH_SIZE):
            batch = codes[start : start + BATCH_SIZE].copy()
            if fixed_dimension is not None:
                batch[:, fixed_dimension] = means[fixed_dimension]
            total += float(((decode(batch) - pixels[start : start + BATCH_SIZE]) ** 2).sum(dtype=np.float64))
        return total

    with ThreadPoolExecutor() as threads:
        error, *errors_without = threads.map(squared_error, [None, *range(codes.shape[1])])
    return np.array(errors_without) / error - 1
