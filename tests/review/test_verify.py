"""`python -m pipeline.review.verify`: its verdicts, and a real reproduction in a clone."""

import json
import re
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save

from pipeline.core import dvcfiles
from pipeline.core.metrics import Metric
from pipeline.experiment import EXPERIMENT
from pipeline.review import verify
from tests.helpers import edited, git, run, set_params

TOLERANCES = {
    "test.mse": Metric(better="lower", absolute=0, relative=0.1),
    "pca.test_mse": Metric(better="lower", absolute=0, relative=0.01),
}
METRICS = {"dataset": "mnist", "test": {"mse": 0.04, "psnr_db": 14.0}, "counts": [1, 2]}


def compared(
    name: str, old: bytes, new: bytes | None, committed: bool = True, is_cached: bool = False
) -> verify.Comparison:
    """Compare two contents of an output; without `committed` only the MD5 of the old one is known."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(old)
    md5 = dvcfiles.md5s([name])[name]
    path.unlink() if new is None else path.write_bytes(new)
    return verify.compare(name, md5, old if committed else None, is_cached, TOLERANCES)


def as_json(**changes: object) -> bytes:
    return json.dumps(METRICS | changes).encode()


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        ({"mse": 0.04, "psnr_db": 14.0}, "identical"),
        ({"mse": 0.0439, "psnr_db": 14.0}, "within tolerance"),
        ({"mse": 0.0361, "psnr_db": 14.0}, "within tolerance"),
        ({"mse": 0.0441, "psnr_db": 14.0}, "different"),
        ({"mse": 0.0359, "psnr_db": 14.0}, "different"),  # better, but not what was committed
        ({"mse": 0.04, "psnr_db": 20.0}, "not judged"),
        ({"mse": float("nan"), "psnr_db": 14.0}, "different"),
        ({"mse": None, "psnr_db": 14.0}, "different"),
        ({"mse": 0.04}, "different"),
        ({"mse": 0.04, "psnr_db": 14.0, "new": 1}, "different"),
    ],
)
def test_metrics_are_judged_in_both_directions(tmp_dir: Path, test: dict[str, float], verdict: str) -> None:
    """Metrics may move by their tolerance in both directions; missing, new and non-finite values are different.

    A metric without a tolerance is not judged.
    """
    assert compared("reports.json", as_json(), as_json(test=test)).verdict == verdict


@pytest.mark.parametrize("changes", [{"dataset": "digits"}, {"counts": [1, 2, 3]}, {"counts": "12"}])
def test_texts_and_lengths_must_be_the_same(tmp_dir: Path, changes: dict[str, object]) -> None:
    """A different text or number of values is always different."""
    assert compared("reports.json", as_json(), as_json(**changes)).verdict == "different"


def test_a_table_is_judged_by_its_columns(tmp_dir: Path) -> None:
    """Every value of a column with a tolerance is judged, and the value that changed the most is shown."""
    old = b"n,test_mse\n1,0.1\n2,0.2\n"
    near = compared("pca.csv", old, b"n,test_mse\n1,0.1005\n2,0.2001\n")
    assert near.verdict == "within tolerance"
    assert [(number.name, number.reproduced) for number in near.numbers] == [("pca.test_mse", 0.1005)]
    assert compared("pca.csv", old, b"n,test_mse\n1,0.1\n2,0.21\n").verdict == "different"
    # A relative tolerance does not let a zero change, whatever its neighbours may do.
    assert compared("pca.csv", b"n,test_mse\n1,0.1\n2,0\n", b"n,test_mse\n1,0.1005\n2,1e-9\n").verdict == "different"
    assert compared("pca.csv", old, b"n,test_mse\n1,0.1\n").verdict == "different"
    assert compared("history.csv", old, b"n,test_mse\n1,0.1\n2,0.21\n").verdict == "not judged"


def tensors(array: np.ndarray) -> bytes:
    return save({"name": array, "n": np.array([1])})


def test_weights_follow_the_metrics(tmp_dir: Path) -> None:
    """Different weights get the metrics' verdict and show their distance; different shapes are different."""
    old = tensors(np.array([3.0, 4.0], np.float32))
    moved = compared("model.safetensors", old, tensors(np.array([3.0, 4.5], np.float32)))
    assert moved.verdict == "not judged"
    assert "0.1 apart" in moved.detail
    assert compared("model.safetensors", old, tensors(np.array([3.0], np.float32))).verdict == "different"
    assert compared("model.safetensors", old, b"no tensors").verdict == "different"
    # A fresh clone does not have the committed weights.
    assert compared("model.safetensors", old, tensors(np.ones(2, np.float32)), committed=False).verdict == "not judged"


def test_data_must_be_the_same_to_the_bit(tmp_dir: Path) -> None:
    """Files in the data folder must be bit-identical, including floats and files of which only the hash is known."""
    path = f"{EXPERIMENT.data_folder}train.safetensors"
    for dtype in (np.uint8, np.float32):
        old, new = save({"images": np.array([1, 2], dtype)}), save({"images": np.array([1, 3], dtype)})
        for committed in (True, False):
            assert compared(path, old, new, committed).verdict == "different"
            assert compared(path, old, old, committed).verdict == "identical"
        assert compared("train.safetensors", old, new).verdict == "not judged"


def test_an_output_that_is_missing_on_either_side_is_different(tmp_dir: Path) -> None:
    """A missing output is different, but a reproduced output whose committed version is only cached is not judged."""
    assert compared("reports.json", as_json(), None).verdict == "different"
    assert compared("reports.json", as_json(), as_json(dataset="x"), committed=False).verdict == "different"
    only_hash = {"committed": False, "is_cached": True}
    assert compared("probes.json", as_json(), as_json(dataset="x"), **only_hash).verdict == "not judged"
    assert compared("probes.json", as_json(), None, **only_hash).verdict == "different"


def test_only_values_with_a_tolerance_can_be_judged() -> None:
    """Weights, absent files and names without a tolerance cannot be judged."""
    assert verify.has_tolerance("reports/evaluate.json", as_json(), TOLERANCES)
    assert not verify.has_tolerance("reports/evaluate.json", as_json(), {})
    assert not verify.has_tolerance("reports/evaluate.json", b'{"other": 1}', TOLERANCES)
    assert not verify.has_tolerance("reports/evaluate.json", None, TOLERANCES)
    assert not verify.has_tolerance("models/autoencoder.safetensors", b"", TOLERANCES)


def test_metrics_are_not_left_to_the_cache(workspace: Path) -> None:
    """Metrics must be in git; weights may be only in DVC's cache."""
    with edited(Path("dvc.yaml"), "- reports/train.json:\n          cache: false", "- reports/train.json"):
        cached = verify.dvcs_outs()
    assert "models/autoencoder.safetensors" in cached
    assert "reports/train.json" not in cached


@pytest.mark.parametrize(
    ("verdicts", "expected", "of_figure", "code"),
    [
        (["identical"], "identical", "identical", 0),
        (["identical", "not judged"], "within tolerance", "within tolerance", 4),
        (["within tolerance", "not judged"], "within tolerance", "within tolerance", 4),
        (["within tolerance", "different", "not judged"], "different", "different", 1),
    ],
)
def test_the_worst_verdict_counts(verdicts: list[str], expected: str, of_figure: str, code: int) -> None:
    """The worst verdict of all outputs is the overall one, and outputs that are not judged get it."""
    comparisons = [verify.Comparison(str(number), verdict, "", []) for number, verdict in enumerate(verdicts)]
    assert verify.worst(comparisons) == expected
    assert verify.apply_verdict(comparisons)[-1].verdict == of_figure
    assert verify.EXIT_CODES[verify.worst(comparisons)] == code


def test_differences_of_the_environment_are_listed() -> None:
    """Only differences are listed, with a note if the environment was recorded with other results or not at all."""
    recorded = {"torch": "1.0", "threads": "2"}
    assert verify.environments(recorded, recorded, True).endswith("the same as recorded.")
    differs = verify.environments(recorded, {"torch": "2.0", "threads": "2"}, False)
    assert "torch: 1.0 when recorded, 2.0 here" in differs
    assert "threads" not in differs
    assert "recorded with other results" in differs
    assert "none was recorded" in verify.environments({}, recorded, True)


@pytest.fixture
def committed(toy: Path, tmp_path: Path) -> Path:
    """A copy of the toy project in its own folder, with committed results."""
    return shutil.copytree(toy, tmp_path / "the project", symlinks=True)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return {path: (size, modification time)} of all files in a folder except git's own."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def verified(folder: Path, code: int, **variables: str) -> str:
    """Run `python -m pipeline.review.verify`, check its exit code, and return what it prints."""
    done = run(folder, "pipeline.review.verify", ok=False, PYTHONDONTWRITEBYTECODE="1", **variables)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_committed_results_are_reproduced_from_scratch(committed: Path, tmp_path: Path) -> None:
    """Results are identical without a cache; workspace and store do not change, and no temporary files are left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = snapshot(committed)
    printed = verified(committed, 0, TMPDIR=str(temporary))
    assert snapshot(committed) == before
    assert list(temporary.glob("verify-*")) == []
    assert "every output is bit-identical" in printed
    with chdir(committed):
        assert printed.count("  identical\n") == len(dvcfiles.all_outs())
    assert "Environment: the same as recorded." in printed
    assert "working tree differs" not in printed

    # An uncommitted edit is reported but not verified.
    with (committed / "pipeline/evaluate.py").open("a") as file:
        file.write("raise SystemExit('not committed')\n")
    assert "The working tree differs from the commit" in verified(committed, 0)


@pytest.mark.slow
def test_another_environment_and_other_code_are_distinguished(project: Path, tmp_path: Path) -> None:
    """Kernels for another CPU stay within tolerance; results that the code did not produce are different."""
    committed = shutil.copytree(project, tmp_path / "the project", symlinks=True)
    git(committed, "add", "-A")
    git(committed, "commit", "-q", "-m", "results")
    record = committed / "reports/environment.json"
    record.write_text(record.read_text().replace('"threads": "2"', '"threads": "64"'))
    # A network trained for two epochs varies more than the committed one.
    tolerances = committed / "metrics.yaml"
    assert "absolute: 0.045" in tolerances.read_text()
    tolerances.write_text(tolerances.read_text().replace("absolute: 0.045", "absolute: 0.2"))
    git(committed, "commit", "-q", "-a", "-m", "as if on another machine")
    printed = verified(committed, 4, ATEN_CPU_CAPABILITY="default", MKL_CBWR="COMPATIBLE")
    assert re.search(r"models/autoencoder\.safetensors +within tolerance \(follows the metrics; .* apart", printed)
    assert re.search(r"data/prepared/train\.safetensors +identical", printed)
    assert "threads: 64 when recorded, 2 here" in printed
    assert "test.mse" in printed

    module = committed / "pipeline/autoencoder/trainer.py"
    module.write_text(module.read_text().replace("lr = params.lr * ", "lr = params.lr * 30 * "))
    git(committed, "commit", "-q", "-a", "-m", "other code, old results")
    printed = verified(committed, 1)
    assert "could not be reproduced" in printed
    assert re.search(r"reports/evaluate\.json +different", printed)
    assert re.search(r"data/prepared/train\.safetensors +identical", printed)


def test_results_must_be_committed_as_dvc_lock_records_them(tmp_dir: Path) -> None:
    """An output that is absent or differs from dvc.lock is wrong, except that cached outputs may be absent."""
    for name in ("same", "other", "cached_other"):
        Path(name).write_text(name)
    expected = dvcfiles.md5s(["same"]) | dict.fromkeys(("other", "absent", "cached_other", "cached_absent"), "ab" * 16)
    wrong = verify.not_as_locked(expected, {"cached_other", "cached_absent"})
    assert set(wrong) == {"other", "cached_other", "absent"}
    assert wrong["absent"].startswith("in dvc.lock, not in git")
    assert wrong["other"] == wrong["cached_other"] == "the file in git is not the one in dvc.lock, see `make review`"


@pytest.mark.slow
def test_results_that_are_not_committed_are_different(committed: Path) -> None:
    """Results that can be reproduced but are not committed are different."""
    git(committed, "rm", "-q", "reports/evaluate.json", "reports/history.csv")
    git(committed, "commit", "-q", "-m", "no results")
    printed = verified(committed, 1)
    for path in ("reports/evaluate", "reports/history"):
        assert re.search(rf"{path}\.\w+ +different \(in dvc\.lock, not in git", printed)
    assert re.search(r"reports/train\.json +identical", printed)


@pytest.mark.slow
def test_results_that_differ_from_dvc_lock_are_different(committed: Path) -> None:
    """A number edited by hand is different, even if dvc.lock's result can be reproduced, and git hooks do no harm."""
    metrics = committed / "reports/train.json"
    metrics.write_text(metrics.read_text().replace('"n_parameters": ', '"n_parameters": 1'))
    git(committed, "commit", "-q", "-a", "-m", "edited by hand")
    head = git(committed, "rev-parse", "HEAD"), (committed / ".git/index").read_bytes()
    hook = {"GIT_DIR": str(committed / ".git"), "GIT_INDEX_FILE": str(committed / ".git/index")}
    printed = verified(committed, 1, **hook)
    assert re.search(r"reports/train\.json +different \(the file in git is not the one in dvc\.lock", printed)
    assert re.search(r"reports/history\.csv +identical", printed)
    assert (git(committed, "rev-parse", "HEAD"), (committed / ".git/index").read_bytes()) == head


@pytest.mark.slow
def test_what_cannot_be_reproduced_at_all_is_misuse(committed: Path) -> None:
    """A stage that fails and missing results in dvc.lock give one line and exit code 2."""
    set_params(committed, train__device="cuda:99")
    git(committed, "commit", "-q", "-a", "-m", "a device that is not here")
    done = run(committed, "pipeline.review.verify", ok=False)
    assert done.returncode == 2
    assert "train.device: cuda:99 is not on this machine" in done.stderr
    lock = yaml.safe_load((committed / "dvc.lock").read_text())
    del lock["stages"]["evaluate"]
    (committed / "dvc.lock").write_text(yaml.safe_dump(lock))
    git(committed, "commit", "-q", "-a", "-m", "a stopped run")
    done = run(committed, "pipeline.review.verify", ok=False)
    assert done.returncode == 2
    assert "dvc.lock records no result for reports/evaluate.json, reports/points.csv" in done.stderr
    git(committed, "rm", "-q", "--cached", "dvc.lock")
    git(committed, "commit", "-q", "-m", "no results")
    done = run(committed, "pipeline.review.verify", ok=False)
    assert done.returncode == 2
    assert "dvc.lock records no result for data/" in done.stderr
