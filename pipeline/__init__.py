"""An autoencoder on MNIST whose stages DVC runs and whose runs MLflow records."""

import os

# By default OpenMP's threads spin while they wait for each other, and next to a busy process training then takes
# several times as long (benchmarks/README.md). libgomp reads this once, when torch is loaded; it changes no result.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
