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
from tests.helpers import edited, git, run, small_params, write_params

TOLERANCES = {
    "test.mse": Metric(better="lower", absolute=0, relative=0.1),
    "pca.test_mse": Metric(better="lower", absolute=0, relative=0.01),
}
METRICS = {"dataset": "mnist", "test": {"mse": 0.04, "psnr_db": 14.0}, "counts": [1, 2]}


def compared(
    name: str, old: bytes, new: bytes | None, committed: bool = True, is_cached: bool = False
) -> verify.Comparison:
    """The comparison of two contents of an out; without `committed` only the MD5 of the old one is known."""
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
def test_metrics_are_judged_to_both_sides(tmp_dir: Path, test: dict[str, float], verdict: str) -> None:
    """By the tolerance of their name; what has none is shown; what is missing, new or no number is different."""
    assert compared("reports.json", as_json(), as_json(test=test)).verdict == verdict


@pytest.mark.parametrize("changes", [{"dataset": "digits"}, {"counts": [1, 2, 3]}, {"counts": "12"}])
def test_texts_and_lengths_must_be_the_same(tmp_dir: Path, changes: dict[str, object]) -> None:
    """There is no tolerance for them."""
    assert compared("reports.json", as_json(), as_json(**changes)).verdict == "different"


def test_a_table_is_judged_by_its_columns(tmp_dir: Path) -> None:
    """Each value of a column that has a tolerance; of each column the value that moved the most is shown."""
    old = b"n,test_mse\n1,0.1\n2,0.2\n"
    near = compared("pca.csv", old, b"n,test_mse\n1,0.1005\n2,0.2001\n")
    assert near.verdict == "within tolerance"
    assert [(number.name, number.reproduced) for number in near.numbers] == [("pca.test_mse", 0.1005)]
    assert compared("pca.csv", old, b"n,test_mse\n1,0.1\n2,0.21\n").verdict == "different"
    # A value of nothing may not move at all, whatever its neighbours may.
    assert compared("pca.csv", b"n,test_mse\n1,0.1\n2,0\n", b"n,test_mse\n1,0.1005\n2,1e-9\n").verdict == "different"
    assert compared("pca.csv", old, b"n,test_mse\n1,0.1\n").verdict == "different"
    assert compared("history.csv", old, b"n,test_mse\n1,0.1\n2,0.21\n").verdict == "not judged"


def tensors(array: np.ndarray) -> bytes:
    return save({"name": array, "n": np.array([1])})


def test_weights_follow_the_metrics(tmp_dir: Path) -> None:
    """Other floats are told by how far apart they are; other shapes are different."""
    old = tensors(np.array([3.0, 4.0], np.float32))
    moved = compared("model.safetensors", old, tensors(np.array([3.0, 4.5], np.float32)))
    assert moved.verdict == "not judged"
    assert "0.1 apart" in moved.detail
    assert compared("model.safetensors", old, tensors(np.array([3.0], np.float32))).verdict == "different"
    assert compared("model.safetensors", old, b"no tensors").verdict == "different"
    # In a fresh clone nobody has the committed weights.
    assert compared("model.safetensors", old, tensors(np.ones(2, np.float32)), committed=False).verdict == "not judged"


def test_data_must_be_the_same_to_the_bit(tmp_dir: Path) -> None:
    """Also floats, and where only its hash is known. Data is what lies in the experiment's folder for it."""
    path = f"{EXPERIMENT.data_folder}train.safetensors"
    for dtype in (np.uint8, np.float32):
        old, new = save({"images": np.array([1, 2], dtype)}), save({"images": np.array([1, 3], dtype)})
        for committed in (True, False):
            assert compared(path, old, new, committed).verdict == "different"
            assert compared(path, old, old, committed).verdict == "identical"
        assert compared("train.safetensors", old, new).verdict == "not judged"


def test_an_out_that_is_missing_on_either_side_is_different(tmp_dir: Path) -> None:
    """It cannot be compared. What git does not keep follows the metrics that are made of it."""
    assert compared("reports.json", as_json(), None).verdict == "different"
    assert compared("reports.json", as_json(), as_json(dataset="x"), committed=False).verdict == "different"
    only_hash = {"committed": False, "is_cached": True}
    assert compared("probes.json", as_json(), as_json(dataset="x"), **only_hash).verdict == "not judged"
    assert compared("probes.json", as_json(), None, **only_hash).verdict == "different"


def test_only_values_with_a_tolerance_can_be_judged() -> None:
    """Without one, "within tolerance" would say nothing: of weights, of a file that is not here, of other names."""
    assert verify.has_tolerance("reports/evaluate.json", as_json(), TOLERANCES)
    assert not verify.has_tolerance("reports/evaluate.json", as_json(), {})
    assert not verify.has_tolerance("reports/evaluate.json", b'{"other": 1}', TOLERANCES)
    assert not verify.has_tolerance("reports/evaluate.json", None, TOLERANCES)
    assert not verify.has_tolerance("models/autoencoder.safetensors", b"", TOLERANCES)


def test_metrics_are_not_left_to_the_cache(workspace: Path) -> None:
    """Metrics that git lacks are different; weights may be in DVC's cache only."""
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
    """Of all outs, and it is the verdict on what cannot be judged by itself, as figures."""
    comparisons = [verify.Comparison(str(number), verdict, "", []) for number, verdict in enumerate(verdicts)]
    assert verify.worst(comparisons) == expected
    assert verify.settle(comparisons)[-1].verdict == of_figure
    assert verify.EXIT_CODES[verify.worst(comparisons)] == code


def test_the_environment_is_told_where_it_differs() -> None:
    """Only that, and whether it was recorded with these results at all."""
    recorded = {"torch": "1.0", "threads": "2"}
    assert verify.environments(recorded, recorded, True).endswith("the recorded one.")
    differs = verify.environments(recorded, {"torch": "2.0", "threads": "2"}, False)
    assert "torch: 1.0 when recorded, 2.0 here" in differs
    assert "threads" not in differs
    assert "recorded with other results" in differs
    assert "none was recorded" in verify.environments({}, recorded, True)


@pytest.fixture
def committed(project: Path, tmp_path: Path) -> Path:
    """A project in a folder of its own whose results are committed."""
    here = shutil.copytree(project, tmp_path / "the project", symlinks=True)
    git(here, "add", "-A")
    git(here, "commit", "-q", "-m", "results")
    return here


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """{path: (size, time of change)} of everything in a folder but git's own files."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def verified(folder: Path, code: int, **variables: str) -> str:
    """What `python -m pipeline.review.verify` prints; the test fails if it ends with another code."""
    done = run(folder, "pipeline.review.verify", ok=False, PYTHONDONTWRITEBYTECODE="1", **variables)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
def test_committed_results_are_reproduced_from_nothing(committed: Path, tmp_path: Path) -> None:
    """Identical, in a clone that uses no cache, and neither workspace nor store changes; nothing temporary is left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    before = snapshot(committed)
    printed = verified(committed, 0, TMPDIR=str(temporary))
    assert snapshot(committed) == before
    assert list(temporary.glob("verify-*")) == []
    assert "every out is identical" in printed
    with chdir(committed):
        assert printed.count("  identical\n") == len(dvcfiles.all_outs())
    assert "Environment: the recorded one." in printed
    assert "working tree differs" not in printed

    # An edit that is not committed is not what is verified, but it is told.
    with (committed / "pipeline/evaluate.py").open("a") as file:
        file.write("raise SystemExit('not committed')\n")
    assert "The working tree differs from the commit" in verified(committed, 0)


@pytest.mark.slow
def test_another_environment_and_another_code_are_told_apart(committed: Path) -> None:
    """Kernels for another CPU stay within tolerance; results that are not those of the code are different."""
    record = committed / "reports/environment.json"
    record.write_text(record.read_text().replace('"threads": "2"', '"threads": "64"'))
    # A network of two epochs moves more than the committed one.
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
    """An out of git that is absent or another is wrong; one that DVC caches may be absent."""
    for name in ("same", "other", "cached_other"):
        Path(name).write_text(name)
    expected = dvcfiles.md5s(["same"]) | dict.fromkeys(("other", "absent", "cached_other", "cached_absent"), "ab" * 16)
    wrong = verify.not_as_locked(expected, {"cached_other", "cached_absent"})
    assert set(wrong) == {"other", "cached_other", "absent"}
    assert wrong["absent"].startswith("dvc.lock records it, git lacks it")
    assert wrong["other"] == wrong["cached_other"] == "what git has is not what dvc.lock records, see `make review`"


@pytest.mark.slow
def test_results_that_are_not_committed_are_different(committed: Path) -> None:
    """What can be reproduced was still not committed."""
    git(committed, "rm", "-q", "reports/evaluate.json", "reports/history.csv")
    git(committed, "commit", "-q", "-m", "no results")
    printed = verified(committed, 1)
    for path in ("reports/evaluate", "reports/history"):
        assert re.search(rf"{path}\.\w+ +different \(dvc\.lock records it, git lacks it", printed)
    assert re.search(r"reports/train\.json +identical", printed)


@pytest.mark.slow
def test_results_that_are_not_those_of_dvc_lock_are_different(committed: Path) -> None:
    """A number that somebody edited, though what dvc.lock has can be reproduced; and nothing of a git hook disturbs."""
    metrics = committed / "reports/train.json"
    metrics.write_text(metrics.read_text().replace('"best_epoch": ', '"best_epoch": 1'))
    git(committed, "commit", "-q", "-a", "-m", "edited by hand")
    head = git(committed, "rev-parse", "HEAD"), (committed / ".git/index").read_bytes()
    hook = {"GIT_DIR": str(committed / ".git"), "GIT_INDEX_FILE": str(committed / ".git/index")}
    printed = verified(committed, 1, **hook)
    assert re.search(r"reports/train\.json +different \(what git has is not what dvc\.lock records", printed)
    assert re.search(r"reports/history\.csv +identical", printed)
    assert (git(committed, "rev-parse", "HEAD"), (committed / ".git/index").read_bytes()) == head


@pytest.mark.slow
def test_what_cannot_be_reproduced_at_all_is_misuse(committed: Path) -> None:
    """One line and exit code 2: a stage that fails, no results, no commit."""
    write_params(small_params(train__device="cuda:99"), committed)
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
    assert (
        "dvc.lock records no result for reports/dimensions.csv, reports/evaluate.json, reports/figures/" in done.stderr
    )
    git(committed, "rm", "-q", "--cached", "dvc.lock")
    git(committed, "commit", "-q", "-m", "no results")
    done = run(committed, "pipeline.review.verify", ok=False)
    assert done.returncode == 2
    assert "dvc.lock records no result for data/" in done.stderr
