"""metrics.yaml: the tolerances of the review and of `make verify`."""

from itertools import permutations

import pandas as pd
import pytest
import yaml

from pipeline.core.errors import PipelineError
from pipeline.core.metrics import Metric, is_number, judged_by, parse_metrics, pattern_of
from pipeline.params import Params
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
    """For the committed experiment, the study's seeds are within tolerance of each other; 10 % more error is not."""
    tolerances = parse_metrics((PROJECT / "metrics.yaml").read_bytes())
    params = Params.model_validate(yaml.safe_load((PROJECT / "params.yaml").read_text())).flat()
    runs = pd.read_csv(
        PROJECT / "reports/compare/runs.csv", dtype={name: str for name in params}, keep_default_na=False
    )
    for name, value in params.items():
        if name != "train.seed":
            runs = runs[runs[name] == str(value)]
    assert len(runs) == 3
    for column, name in COLUMNS.items():
        tolerance = judged_by(name, tolerances)
        assert tolerance is not None
        for old, new in permutations(runs[column].astype(float), 2):
            assert tolerance.verdict(old, new) == "within tolerance", name
            if name.endswith("mse"):
                assert tolerance.verdict(old, 1.1 * old) == "worse"


def test_what_is_better_depends_on_the_metric() -> None:
    """An increase is worse for an error and better for an accuracy."""
    error, accuracy = (Metric(better=better, absolute=0.1, relative=0) for better in ("lower", "higher"))
    assert (error.verdict(1, 2), error.verdict(2, 1)) == ("worse", "better")
    assert (accuracy.verdict(1, 2), accuracy.verdict(2, 1)) == ("better", "worse")


def test_the_margin_itself_is_tolerated_on_either_side() -> None:
    """A change by exactly the margin is within tolerance; for a negative old value its absolute value counts."""
    tolerance = Metric(better="lower", absolute=1, relative=0.5)
    assert tolerance.margin(-4) == tolerance.margin(4) == 3
    for new, verdict in ((-7.5, "better"), (-7, "within tolerance"), (-1, "within tolerance"), (-0.5, "worse")):
        assert tolerance.verdict(-4, new) == verdict


@pytest.mark.parametrize(
    ("absolute", "relative", "shown"),
    [(0, 0.03, "3 %"), (0.13, 0, "0.13"), (1e-6, 0.001, "1e-06 + 0.1 %"), (0, 0, "0")],
)
def test_a_tolerance_as_text(absolute: float, relative: float, shown: str) -> None:
    """`allowed` formats a tolerance as a review shows it."""
    assert Metric(better="lower", absolute=absolute, relative=relative).allowed == shown


def test_the_first_pattern_counts() -> None:
    """The first matching pattern applies; missing settings are 0; unknown or negative settings are errors."""
    tolerances = parse_metrics(b"a.b: {better: lower}\na.*: {better: higher, relative: 1}\n")
    assert [pattern_of(name, tolerances) for name in ("a.b", "a.c", "b.a")] == ["a.b", "a.*", None]
    assert judged_by("a.b", tolerances) == Metric(better="lower", absolute=0, relative=0)
    assert judged_by("b.a", tolerances) is None
    for bad in (
        b"a: {better: lower, relativ: 1}",
        b"a: {better: lower, absolute: -1}",
        b"a: {better: lower, relative: -1}",
    ):
        with pytest.raises(PipelineError, match=r"metrics\.yaml is not valid: (relativ|absolute)"):
            parse_metrics(bad)


def test_only_finite_numbers_are_judged() -> None:
    """Booleans, strings, NaN and infinity are not judged."""
    assert is_number(1)
    assert is_number(0.5)
    assert not any(map(is_number, (True, "1", None, float("nan"), float("inf"))))
