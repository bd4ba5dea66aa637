"""The metrics of an evaluation: reconstruction errors, effective rank of the codes, importance of each dimension."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

# The activations of this many images fit into the processor's cache.
BATCH_SIZE = 1000
# A latent dimension is dead if the error grows by less than this share without it.
DEAD = 0.001


def effective_rank(codes: np.ndarray) -> float:
    """Return the number of directions in which codes [n, k] vary, weighted by how much: 1 to k.

    It is the exponential of the entropy of the centred codes' singular values, scaled to sum to 1
    (Roy and Vetterli, The effective rank, EUSIPCO 2007). It is 0 if the codes do not vary at all.
    """
    centred = codes.astype(np.float64) - codes.mean(axis=0, dtype=np.float64)
    singular_values = np.sqrt(np.linalg.eigvalsh(centred.T @ centred).clip(0))
    if singular_values.sum() == 0:
        return 0.0
    shares = singular_values / singular_values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def importance(codes: np.ndarray, pixels: np.ndarray, decode: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return [k]: the relative growth of the MSE if each latent dimension in turn is fixed at its mean.

    `decode` maps codes [n, k] to images [n, 784], which are compared with `pixels`. Several threads call it at once.
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


def measure(image_mse: np.ndarray, labels: np.ndarray, pca_mse: float, mean_image_mse: float) -> dict[str, Any]:
    """Return the test metrics.

    Args:
        image_mse: [n], the mean squared error over each image's pixels (0…1).
        labels: [n], the images' digits.
        pca_mse: the MSE of PCA with as many components as the bottleneck has dimensions, or all if there are fewer.
        mean_image_mse: the MSE of the mean training image.

    Returns:
        mse, the mean over images; psnr_db = 10 log10(1 / mse), where 1 is the peak value; pca_mse and
        mean_image_mse; ratio_to_pca = mse / pca_mse, absent if PCA has no error beyond rounding;
        digit_mse, the mean over the images of each digit.
    """
    mse = float(image_mse.mean())
    metrics: dict[str, Any] = {
        "mse": mse,
        "psnr_db": 10 * math.log10(1 / mse),
        "pca_mse": pca_mse,
        "mean_image_mse": mean_image_mse,
    }
    if pca_mse > 1e-9:
        metrics["ratio_to_pca"] = mse / pca_mse
    metrics["digit_mse"] = {str(digit): float(image_mse[labels == digit].mean()) for digit in np.unique(labels)}
    return metrics
