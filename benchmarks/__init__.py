"""What the project's figures of speed, cost and reproducibility are measured with: `make bench`."""

import pipeline  # noqa: F401  before torch: it says how OpenMP's threads wait, which torch reads when it loads
