"""tolerances.yaml: what the review and `make verify` forgive."""

from itertools import permutations

import pandas as pd
import yaml

from pipeline.params import Params
from pipeline.tolerances import parse_tolerances, tolerance_of
from tests.helpers import PROJECT

COLUMNS = {
    "test_mse": "test.mse",
    "test_psnr_db": "test.psnr_db",
    "ratio_to_pca": "test.ratio_to_pca",
    "valid_mse": "valid.best_mse",
    "logistic_regression": "accuracy.logistic_regression.codes",
    "nearest_neighbours": "accuracy.nearest_neighbours.codes",
}


def test_another_seed_is_within_tolerance_and_a_tenth_more_error_is_not() -> None:
    """Of the committed experiment, whichever seed is the old one, by the study's runs."""
    tolerances = parse_tolerances((PROJECT / "tolerances.yaml").read_bytes())
    params = Params.model_validate(yaml.safe_load((PROJECT / "params.yaml").read_text())).flat()
    runs = pd.read_csv(
        PROJECT / "reports/compare/runs.csv", dtype={name: str for name in params}, keep_default_na=False
    )
    for name, value in params.items():
        if name != "train.seed":
            runs = runs[runs[name] == str(value)]
    assert len(runs) == 3
    for column, name in COLUMNS.items():
        tolerance = tolerance_of(name, tolerances)
        assert tolerance is not None
        for old, new in permutations(runs[column].astype(float), 2):
            assert tolerance.verdict(old, new) == "within tolerance", name
            if name.endswith("mse"):
                assert tolerance.verdict(old, 1.1 * old) == "worse"
