"""What a code is worth beyond reconstruction: how well simple classifiers read the digit from it."""

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
