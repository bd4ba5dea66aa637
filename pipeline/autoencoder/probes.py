"""Measure what codes are worth beyond reconstruction: how well simple classifiers read the digit from them."""

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


def accuracies(
    train_codes: np.ndarray, train_labels: np.ndarray, test_codes: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """Return the accuracy on test codes [m, k] of each classifier, fitted on training codes [n, k].

    Logistic regression on standardised codes, L2-regularised with scikit-learn's C = 1, shows whether the digits are
    linearly separable. The majority of the five nearest training codes by Euclidean distance shows whether similar
    codes are of the same digit. Both are fitted at once, each in its own thread.
    """

    def accuracy(classifier: ClassifierMixin) -> float:
        return float(classifier.fit(train_codes, train_labels).score(test_codes, test_labels))

    classifiers = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        KNeighborsClassifier(N_NEIGHBOURS),
    )
    # The number of threads of one matrix product decides its last bits. The number of simultaneous products does not.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor() as threads:
        return dict(zip(CLASSIFIERS, threads.map(accuracy, classifiers), strict=True))
