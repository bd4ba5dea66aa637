"""An experiment. DVC runs its stages, and MLflow records its runs."""

import os

# By default OpenMP's threads spin while they wait for each other. Next to a busy process, training then takes several
# times as long. libgomp reads this variable once, when torch is loaded. It changes no result.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
