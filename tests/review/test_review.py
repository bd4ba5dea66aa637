"""`python -m pipeline.review` on scratch repositories with a real DVC pipeline of two stages."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.metrics import Metric, parse_metrics
from pipeline.review import __main__ as command
from pipeline.review import report
from pipeline.review.report import Change, MetricChange, Review
from tests.helpers import PROJECT, copy_project, environment, git, run

DVC_YAML = """\
stages:
  make:
    cmd: python make.py
    deps: [make.py]
    params: [model]
    outs: [model.bin]
  measure:
    cmd: python measure.py
    deps: [measure.py, model.bin]
    metrics:
      - metrics.json: {cache: false}
    plots:
      - figure.png: {cache: false}
"""
MAKE = """\
import pathlib, yaml
width = yaml.safe_load(open("params.yaml"))["model"]["width"]
pathlib.Path("model.bin").write_text(str(width))
"""
MEASURE = """\
import json, pathlib
width = int(pathlib.Path("model.bin").read_text())
factor = 1.0
metrics = {"dataset": "mnist", "test": {"mse": factor * 0.4 / width, "psnr_db": 10.0 + width, "seen": width}}
pathlib.Path("metrics.json").write_text(json.dumps(metrics))
pathlib.Path("figure.png").write_bytes(b"figure" + bytes([width]))
"""
TOLERANCES = """\
test.mse: {better: lower, relative: 0.05}
test.psnr_*: {better: higher, absolute: 0.1}
"""

Reviewer = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose first commit has no DVC, tagged `bare`, and whose second is the pipeline after a run."""
    folder = tmp_path_factory.mktemp("review") / "scratch"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "README.md").write_text("scratch\n")
    commit(folder, "no pipeline yet")
    git(folder, "tag", "bare")
    run(folder, "dvc", "init", "-q")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("model:\n  width: 4\n  name: plain\n")
    (folder / "make.py").write_text(MAKE)
    (folder / "measure.py").write_text(MEASURE)
    (folder / "metrics.yaml").write_text(TOLERANCES)
    run(folder, "dvc", "repro")
    commit(folder, "the pipeline")
    return folder


@pytest.fixture
def scratch(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template as the working directory."""
    folder = tmp_path / "scratch"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def reviewed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Reviewer:
    """Return a function that runs the command and returns its exit code and output (the error's message for 2)."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["review", *arguments])
        capsys.readouterr()
        try:
            command.main()
        except SystemExit as ended:
            return int(ended.code or 0), capsys.readouterr().out
        except PipelineError as error:
            return 2, str(error)
        raise AssertionError("review ended without an exit code")

    return call


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD").strip()


def change(folder: Path, file: str, old: str, new: str, repro: bool = True) -> str:
    """Edit one file, run the pipeline if `repro`, and commit; return the commit."""
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    if repro:
        run(folder, "dvc", "repro")
    return commit(folder, f"{file}: {new}")


def test_no_change_is_reported_in_every_section(scratch: Path, reviewed: Reviewer) -> None:
    """For two equal commits every section reports that nothing changed, and the exit code is 0."""
    code, text = reviewed("HEAD", "HEAD")
    assert code == 0
    assert "Frozen" not in text
    for words in ("No parameter changed.", "No metric changed.", "None.", "No figure changed.", "It matches"):
        assert words in text


def test_a_better_result_passes(scratch: Path, reviewed: Reviewer) -> None:
    """A better result exits with 0 and lists parameters, metrics with differences, stages with reasons, and figures."""
    change(scratch, "params.yaml", "width: 4", "width: 8")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 0
    assert "| model.width | 4 | 8 |" in text
    assert "| test.mse | 0.1 | 0.05 | -0.05 | -50.0 | better |" in text
    assert "| test.seen | 4 | 8 | +4 | +100.0 | not judged |" in text
    assert "- **make**: `model.width` 4 → 8" in text
    assert "- **measure**: after make" in text
    assert "Changed: `figure.png`" in text


def test_a_worse_result_fails(scratch: Path, reviewed: Reviewer) -> None:
    """A metric that gets worse by more than its tolerance gives exit code 1."""
    change(scratch, "params.yaml", "width: 4", "width: 2")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 1
    assert "| test.mse | 0.1 | 0.2 | +0.1 | +100.0 | worse |" in text
    assert "| test.psnr_db | 14 | 12 | -2 | -14.3 | worse |" in text
    assert "❌ test.mse +100.0 %, 5 % allowed; test.psnr_db -2, 0.1 allowed." in text


@pytest.mark.parametrize(
    ("better", "new", "verdict"),
    [
        ("lower", 0.84, "better"),
        ("lower", 0.98, "within tolerance"),
        ("lower", 1.00, "within tolerance"),
        ("lower", 1.14, "within tolerance"),
        ("lower", 1.16, "worse"),
        ("higher", 1.16, "better"),
        ("higher", 0.84, "worse"),
    ],
)
def test_a_verdict_is_absolute_plus_relative(better: str, new: float, verdict: str) -> None:
    """With 0.05 absolute and 10 % relative, a change of up to 0.15 from 1.0 is within tolerance."""
    tolerance = Metric.model_validate({"better": better, "absolute": 0.05, "relative": 0.1})
    assert tolerance.verdict(1.0, new) == verdict


def test_a_little_worse_is_tolerated(scratch: Path, reviewed: Reviewer) -> None:
    """A metric that gets worse by less than its tolerance of 5 % passes."""
    change(scratch, "measure.py", "factor = 1.0", "factor = 1.04")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 0
    assert "| test.mse | 0.1 | 0.104 | +0.004 | +4.0 | within tolerance |" in text
    assert "- **measure**: `measure.py` modified\n" in text
    assert "**make**" not in text


def test_a_metric_that_vanishes_fails(scratch: Path, reviewed: Reviewer) -> None:
    """A judged metric that is removed or becomes NaN fails the gate."""
    change(scratch, "measure.py", '"mse": factor * 0.4 / width', '"mse": float("nan")')
    assert reviewed("HEAD~1", "HEAD")[0] == 1
    values = json.loads(reviewed("HEAD~1", "HEAD", "--json")[1], parse_constant=pytest.fail)
    assert values["metrics"][0] == {"name": "test.mse", "old": 0.1, "new": None, "verdict": "gone", "allowed": "5 %"}
    change(scratch, "measure.py", '"mse": float("nan"), ', "")
    code, text = reviewed("HEAD~2", "HEAD")
    assert code == 1
    assert "| test.mse | 0.1 | — |  |  | gone |" in text


def test_other_data_does_not_pass(scratch: Path, reviewed: Reviewer) -> None:
    """If the test images changed, the metrics are not comparable, and the review fails."""
    stage = "  split:\n    cmd: python split.py\n    deps: [split.py]\n    outs: [data/prepared/test.safetensors]\n"
    (scratch / "split.py").write_text('open("data/prepared/test.safetensors", "w").write("images")')
    (scratch / "data/prepared").mkdir(parents=True)
    change(scratch, "dvc.yaml", "  measure:\n", stage + "  measure:\n")
    (scratch / "measure.py").write_text(MEASURE.replace('"dataset": "mnist", ', "").replace("1.0", "0.5", 1))
    change(scratch, "split.py", "images", "others")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 1
    assert "| test.mse | 0.1 | 0.05 | -0.05 | -50.0 | not comparable |" in text
    assert "❌ test.mse was measured on other data." in text


def test_only_the_prepared_splits_count_as_data() -> None:
    """A file of the same name outside the experiment's data folder does not count as its data."""
    outs = [{"path": f"data/{folder}/test.safetensors", "md5": folder} for folder in ("prepared", "augmented")]
    lock = json.dumps({"stages": {"all": {"outs": outs}}}).encode()
    assert command.data_of(command.lock_outs(lock)) == {"data/prepared/test.safetensors": "prepared"}


def test_metrics_must_be_in_git(scratch: Path, reviewed: Reviewer) -> None:
    """Cached metrics fail the review, because it cannot see their numbers."""
    change(scratch, "dvc.yaml", "metrics.json: {cache: false}", "metrics.json")
    git(scratch, "rm", "-q", "--cached", "metrics.json")
    run(scratch, "dvc", "commit", "-f", "-q")
    commit(scratch, "cached")
    code, text = reviewed("HEAD", "HEAD")
    assert code == 3
    assert "**measure**: `metrics.json` is a metric that is not in git; declare it with `cache: false`" in text


def test_metrics_of_a_pipeline_in_a_subfolder_must_be_written_by_a_stage(scratch: Path, reviewed: Reviewer) -> None:
    """Metrics that no stage writes fail, whichever dvc.yaml declares them."""
    (scratch / "sub").mkdir()
    (scratch / "sub/dvc.yaml").write_text("metrics: [../hand.json]\n")
    (scratch / "hand.json").write_text('{"test": {"psnr_db": 99}}')
    commit(scratch, "by hand")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "**sub/dvc.yaml**: no stage writes the metrics `hand.json`" in text


@pytest.mark.parametrize("dependency", ["data", "data/gen/a.csv"])
def test_a_dependency_in_or_around_cached_outputs_may_be_absent(
    scratch: Path, reviewed: Reviewer, dependency: str
) -> None:
    """A clone without a cache lacks the files in cached folders, and that is not a reason to fail."""
    (scratch / "gen.py").write_text(
        "import pathlib\n"
        'pathlib.Path("data/gen").mkdir(parents=True, exist_ok=True)\n'
        'pathlib.Path("data/gen/a.csv").write_text("1")\n'
    )
    stages = f"""\
  gen:
    cmd: python gen.py
    deps: [gen.py]
    outs: [data/gen]
  use:
    cmd: python -c "open('used', 'w')"
    deps: [{dependency}]
    outs: [used]
"""
    change(scratch, "dvc.yaml", "stages:\n", "stages:\n" + stages)
    code, text = reviewed("HEAD~1", "HEAD")
    assert (code, "It does not match" in text) == (0, False), text


def test_files_that_only_look_like_the_pipelines(scratch: Path, reviewed: Reviewer) -> None:
    """A dvc.lock without a dvc.yaml, and a link that leads out of the repository, are ignored."""
    (scratch / "fixtures").mkdir()
    shutil.copy(scratch / "dvc.lock", scratch / "fixtures")
    (scratch / "hosts").symlink_to("/etc/hosts")
    commit(scratch, "fixtures")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 0, text


def test_reports_that_no_stage_writes_are_named(scratch: Path, reviewed: Reviewer) -> None:
    """A changed comparison passes, with a note. So does the working tree, which is named as such."""
    (scratch / "reports/compare").mkdir(parents=True)
    (scratch / "reports/compare/table.md").write_text("another study\n")
    (scratch / "reports/environment.json").write_text("{}\n")
    code, text = reviewed("HEAD")
    assert (code, text.splitlines()[0]) == (0, f"## Review of the working tree against `{head(scratch)[:10]}`")
    commit(scratch, "another study")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 0
    assert "Changed under reports/, but no stage writes them: `reports/compare/table.md`." in text


def head(folder: Path) -> str:
    return git(folder, "rev-parse", "HEAD").strip()


def test_each_metric_is_compared_on_its_own_split() -> None:
    """Other validation images leave the test metrics comparable, and vice versa; new metrics pass."""
    tolerances = {"*.mse": Metric(better="lower", absolute=0, relative=0.1)}
    metrics = [Change("test.mse", 1.0, 0.5), Change("valid.mse", 1.0, 0.5), Change("new.mse", None, 0.5)]
    for split, other in (("valid", "test"), ("test", "valid")):
        other_data = {f"data/prepared/{split}.safetensors": True, f"data/prepared/{other}.safetensors": False}
        judged = command.judge(metrics, tolerances, other_data)
        verdicts = {metric.name: metric.verdict for metric in judged}
        assert verdicts == {f"{split}.mse": "not comparable", f"{other}.mse": "better", "new.mse": "new"}


def test_the_headline_comes_first_and_digits_are_folded() -> None:
    """Failing metrics come first, each part in the order of metrics.yaml; the verdict names three of them."""
    tolerances = parse_metrics((PROJECT / "metrics.yaml").read_bytes())
    names = ["accuracy.nearest_neighbours.codes", "codes.n_dead", "test.psnr_db", "test.mse", "valid.best_mse"]
    metrics = [Change(name, 1.0, 1.184) for name in [*names, "test.digit_mse.1", "test.digit_mse.0"]]
    metrics.append(Change("test.digit_mse.2", 1.0, 1.1))
    judged = command.judge(metrics, tolerances, {})
    assert [metric.name for metric in judged] == [
        "test.mse",
        "valid.best_mse",
        "test.digit_mse.0",
        "test.digit_mse.1",
        "test.psnr_db",
        "test.digit_mse.2",
        "accuracy.nearest_neighbours.codes",
        "codes.n_dead",
    ]
    text = report.markdown(Review("base", "head", "head", [], judged, {}, {}, [], []), None)
    verdict = (
        "test.mse +18.4 %, 3 % allowed; valid.best_mse +18.4 %, 3 % allowed; test.digit_mse.0 +18.4 %, 12 % allowed"
    )
    assert f"❌ {verdict}; and 1 more.\n" in text
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "<summary>Single digits: 2 worse, 1 within tolerance</summary>\n\n| metric |" in folded
    assert text.count("test.digit_mse.2") == folded.count("| test.digit_mse.2 |") == 1
    assert "| test.psnr_db |" not in folded


@pytest.mark.parametrize(
    ("verdict", "lock", "code"),
    [
        ("worse", {}, 1),
        ("gone", {}, 1),
        ("not comparable", {}, 1),
        ("within tolerance", {}, 0),
        ("new", {}, 0),
        ("not judged", {}, 0),
        ("better", {"train": ["changed command"]}, 3),
        ("worse", {"train": ["changed command"]}, 3),
    ],
)
def test_exit_code_of_a_verdict(verdict: str, lock: dict[str, list[str]], code: int) -> None:
    """An out-of-date dvc.lock takes precedence over any verdict on metrics."""
    metrics = [MetricChange("a", 1, 1, "better", None), MetricChange("b", 1, 2, verdict, "3 %")]
    assert Review("base", "head", "head", [], metrics, {}, lock, [], []).exit_code == code


def test_changes_are_sorted_and_equal_values_left_out() -> None:
    """Changes are sorted by name over all files, equal values are left out, and a value that was NaN counts as new."""
    files = {
        "one": {"b.a": {"old": 1, "new": 2}, "c": {"old": 3, "new": 3}},
        "two": {"a.b": {"old": float("nan"), "new": 1}},
    }
    found = command.changes({"diff": files})
    assert [change.name for change in found] == ["a.b", "b.a"]
    tolerances = {"*": Metric(better="lower", absolute=0, relative=0)}
    judged = command.judge(found, tolerances, {})
    assert [metric.verdict for metric in judged] == ["worse", "new"]


def test_a_renamed_file_of_metrics_loses_none() -> None:
    """A metric that moved from one file to another is compared."""
    files = {
        "old.json": {"test.mse": {"old": 1, "new": None}, "same": {"old": 2, "new": None}},
        "new.json": {"test.mse": {"old": None, "new": 3}, "same": {"old": None, "new": 2}},
    }
    assert command.changes({"diff": files}) == [Change("test.mse", 1, 3)]


def test_verdict_names_what_vanished() -> None:
    """The verdict names a metric that is gone, without a difference, and lists two failures completely."""
    gone = MetricChange("test.mse", 0.1, None, "gone", "5 %")
    zero = MetricChange("test.bias", 0.0, 2.0, "worse", "5 %")
    text = report.markdown(Review("base", "head", "head", [], [gone, zero], {}, {}, [], []), None)
    assert "❌ test.mse is gone; test.bias +2, 5 % allowed.\n" in text


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("params.yaml", "width: 4", "width: 8", "**make**: `model.width` 4 → 8"),
        ("measure.py", "factor = 1.0", "factor = 0.9", "**measure**: `measure.py` modified"),
        ("metrics.json", "0.1", "0.01", "**measure**: `metrics.json` modified"),
        ("dvc.yaml", "python make.py", "python -B make.py", "**make**: changed command"),
        ("dvc.yaml", "outs: [model.bin]", "outs: [model.bin, other.bin]", "**make**: `other.bin` is not in dvc.lock"),
        ("dvc.yaml", "deps: [make.py]", "deps: [make.py, measure.py]", "**make**: `measure.py` is not in dvc.lock"),
        (
            "dvc.yaml",
            "plots:\n",
            "outs: [cached.bin]\n    plots:\n",
            "**measure**: `cached.bin` is not in dvc.lock",
        ),
    ],
)
def test_results_that_this_code_did_not_produce_fail(
    scratch: Path, reviewed: Reviewer, file: str, old: str, new: str, reason: str
) -> None:
    """A parameter, code, metric or command that changed without a run makes dvc.lock out of date: exit code 3."""
    change(scratch, file, old, new, repro=False)
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert f"It does not match the files next to it:\n\n- {reason}" in text


FIGURE = "    plots:\n      - figure.png: {cache: false}\n"


@pytest.mark.parametrize(
    ("edits", "reasons"),
    [
        (  # a cached file may be absent, but not different
            [("dvc.yaml", "metrics.json: {cache: false}", "metrics.json"), ("metrics.json", "0.1", "0.01")],
            ["**measure**: `metrics.json` modified"],
        ),
        (
            [("dvc.yaml", "[measure.py, model.bin]", "[model.bin]"), ("measure.py", "1.0", "0.9")],
            ["**measure**: `measure.py` is in dvc.lock, not in dvc.yaml"],
        ),
        (
            [("dvc.yaml", "    params: [model]\n", ""), ("params.yaml", "4", "8")],
            ["**make**: `model` is in dvc.lock, not in dvc.yaml"],
        ),
        (
            [("dvc.yaml", "params: [model]", "params: [model.name]"), ("params.yaml", "4", "8")],
            ["**make**: `model.name` is not in dvc.lock; `model` is in dvc.lock, not in dvc.yaml"],
        ),
        (
            [("dvc.yaml", "params: [model]", "params: [model, other]"), ("params.yaml", "model:", "other:\nmodel:")],
            ["**make**: `other` is not in dvc.lock"],
        ),
        (
            [("params.yaml", "model:", "models:")],
            ["**make**: `model` is not in params.yaml"],
        ),
        (
            [
                ("dvc.yaml", "[make.py]", "[swap.py]"),
                ("dvc.yaml", "[measure", "[make"),
                ("dvc.yaml", "swap", "measure"),
            ],
            [
                "**make**: `measure.py` is not in dvc.lock; `make.py` is in dvc.lock, not in dvc.yaml",
                "**measure**: `make.py` is not in dvc.lock; `measure.py` is in dvc.lock, not in dvc.yaml",
            ],
        ),
        (
            [("dvc.yaml", FIGURE, ""), ("dvc.yaml", "[model.bin]\n  m", "[model.bin]\n" + FIGURE + "  m")],
            ["**make**: `figure.png` is not in dvc.lock", "**measure**: `figure.png` is in dvc.lock, not in dvc.yaml"],
        ),
        (
            [
                ("dvc.yaml", DVC_YAML[DVC_YAML.index("  measure:") :], "metrics: [metrics.json]\n"),
                ("metrics.json", "0.1", "0.01"),
            ],
            [
                "**measure**: not in dvc.yaml: delete it from dvc.lock",
                "**dvc.yaml**: no stage writes the metrics `metrics.json`",
            ],
        ),
        (
            [("dvc.yaml", "    cmd: python make.py", "    always_changed: true\n    cmd: python make.py")],
            ["**make**: always changed"],
        ),
    ],
)
def test_dvc_lock_must_list_what_dvc_yaml_declares(
    scratch: Path, reviewed: Reviewer, edits: list[tuple[str, str, str]], reasons: list[str]
) -> None:
    """Differences between dvc.lock and dvc.yaml fail, although DVC itself would skip the stage in most cases."""
    for file, old, new in edits:
        text = (scratch / file).read_text()
        assert old in text
        (scratch / file).write_text(text.replace(old, new))
    commit(scratch, "nothing was run")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "It does not match the files next to it:\n\n- " + "\n- ".join(reasons) + "\n\n" in text


def test_a_commit_without_dvc_lock(scratch: Path, reviewed: Reviewer) -> None:
    """Without a dvc.lock every stage is out of date."""
    (scratch / "dvc.lock").unlink()
    commit(scratch, "no dvc.lock")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "- **make**: not in dvc.lock\n- **measure**: not in dvc.lock\n" in text


def test_metrics_that_dvc_add_tracks(scratch: Path, reviewed: Reviewer) -> None:
    """Metrics that no stage writes fail, even if `dvc add` tracks them."""
    (scratch / "numbers.json").write_text('{"test": {"psnr_db": 99}}')
    run(scratch, "dvc", "add", "-q", "numbers.json")
    change(scratch, "dvc.yaml", "stages:", "metrics: [numbers.json]\nstages:", repro=False)
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "- **dvc.yaml**: no stage writes the metrics `numbers.json`" in text


def test_single_values_whole_files_and_nulls_of_parameters(scratch: Path, reviewed: Reviewer) -> None:
    """Parameters that are declared one by one or as a whole file are compared; null differs from an absent key."""
    (scratch / "other.yaml").write_text("lr: 1\nsub: {a: 1, b: null}\n")
    change(scratch, "dvc.yaml", "params: [model]", "params: [model.width, other.yaml: ]")
    run(scratch, "dvc", "repro", "--force")
    commit(scratch, "run")
    assert reviewed("HEAD~1", "HEAD")[0] == 0
    (scratch / "other.yaml").write_text("lr: 2\nsub: {a: 1}\n")
    change(scratch, "params.yaml", "width: 4", "width: 8", repro=False)
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "next to it:\n\n- **make**: `model.width` 4 → 8; `lr` 1 → 2; `sub.b` — → —\n" in text


def test_a_forced_run_brings_dvc_lock_up_to_date(scratch: Path, reviewed: Reviewer) -> None:
    """`dvc repro --force`, which the report names, removes from dvc.lock what dvc.yaml no longer declares."""
    change(scratch, "dvc.yaml", "[measure.py, model.bin]", "[model.bin]")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "run `dvc repro` (`--force`" in text
    run(scratch, "dvc", "repro", "--force", "measure")
    commit(scratch, "run")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 0


def test_frozen_stages_are_checked_like_others(scratch: Path, reviewed: Reviewer) -> None:
    """Freezing is noted and passes, but the inputs of a frozen stage must match dvc.lock."""
    run(scratch, "dvc", "freeze", "make", "measure")
    commit(scratch, "frozen")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 0
    assert "Frozen stages, which `dvc repro` skips until `dvc unfreeze`: `make`, `measure`." in text
    change(scratch, "measure.py", "factor = 1.0", "factor = 0.9", repro=False)
    change(scratch, "params.yaml", "width: 4", "width: 8")
    code, text = reviewed("HEAD~2", "HEAD")
    assert code == 3
    assert "next to it:\n\n- **make**: `model.width` 4 → 8\n- **measure**: `measure.py` modified\n" in text


def test_a_lock_without_hashes_is_out_of_date(scratch: Path, reviewed: Reviewer) -> None:
    """Data may be absent only if dvc.lock has its hash."""
    lock = (scratch / "dvc.lock").read_text()
    (scratch / "dvc.lock").write_text(re.sub(r"(path: model.bin\n).*\n.*md5.*\n", r"\1", lock))
    commit(scratch, "no hash")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "- **make**: `model.bin` is not in dvc.lock\n- **measure**: `model.bin` is not in dvc.lock\n" in text


def test_stages_in_other_folders_and_generated_stages(scratch: Path, reviewed: Reviewer) -> None:
    """Stages with wdir, stages from foreach and stages of a dvc.yaml in a subfolder are compared like others."""
    (scratch / "write.py").write_text('import sys\nopen(sys.argv[1], "w").write("content")\n')
    for folder in ("a", "b", "sub"):
        (scratch / folder).mkdir()
    (scratch / "dvc.yaml").write_text(
        DVC_YAML
        + """\
  one: {wdir: a, cmd: python ../write.py out, deps: [../write.py], outs: [out]}
  two: {wdir: b, cmd: python ../write.py out, deps: [../write.py], outs: [{out: {cache: false}}]}
  many:
    foreach: [x, y]
    do: {cmd: "python write.py ${item}.txt", deps: [write.py], outs: ["${item}.txt": {cache: false}]}
"""
    )
    stage = "{cmd: python ../write.py out, deps: [../write.py, ../a/out], outs: [{out: {cache: false}}]}"
    (scratch / "sub/dvc.yaml").write_text(f"stages:\n  make: {stage}\n")
    run(scratch, "dvc", "repro", "--all-pipelines")
    commit(scratch, "more stages")
    assert reviewed("HEAD~1", "HEAD")[0] == 0
    (scratch / "b/out").unlink()
    (scratch / "x.txt").write_text("other")
    (scratch / "sub/out").write_text("other")
    lock = (scratch / "sub/dvc.lock").read_text()
    (scratch / "sub/dvc.lock").write_text(re.sub(r"(path: ../a/out\n.*\n.*md5: ).*", r"\1" + "ab" * 16, lock))
    commit(scratch, "nothing was run")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    for reason in (
        "- **two**: `b/out` deleted\n",
        "- **many@x**: `x.txt` modified\n",
        "- **sub/dvc.yaml:make**: `a/out` is not the version that dvc.lock records as an output; `sub/out` mod",
    ):
        assert reason in text
    assert "**one**" not in text
    assert "many@y" not in text


def test_a_cached_output_as_a_new_dependency_is_out_of_date(scratch: Path, reviewed: Reviewer) -> None:
    """Absent data is accepted only if dvc.lock records it for the same stage."""
    stage = "  third:\n    cmd: python measure.py\n    deps: [measure.py]\n    outs: [third.bin]\n"
    (scratch / "third.bin").write_text("")
    (scratch / "dvc.yaml").write_text(DVC_YAML + stage.replace("measure.py\n", '-c \'open("third.bin", "w")\'\n', 1))
    run(scratch, "dvc", "repro")
    commit(scratch, "a third stage")
    assert reviewed("HEAD~1", "HEAD")[0] == 0
    change(scratch, "dvc.yaml", "deps: [measure.py]\n", "deps: [measure.py, model.bin]\n", repro=False)
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "- **third**: `model.bin` is not in dvc.lock" in text


def test_a_base_that_cannot_be_read(scratch: Path, reviewed: Reviewer) -> None:
    """A corrupt metrics file in the base is an error; it does not make every metric count as new."""
    metrics = (scratch / "metrics.json").read_text()
    (scratch / "metrics.json").write_text("{")
    commit(scratch, "damaged")
    (scratch / "metrics.json").write_text(metrics)
    commit(scratch, "repaired")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 2
    assert "DVC cannot read one side" in text


def test_a_base_with_a_conflicted_lock_can_be_repaired(scratch: Path, reviewed: Reviewer) -> None:
    """A commit that repairs dvc.lock passes with a note; a conflicted dvc.lock under review is an error."""
    lock = (scratch / "dvc.lock").read_text()
    (scratch / "dvc.lock").write_text("<<<<<<< HEAD\n" + lock)
    commit(scratch, "conflict")
    (scratch / "dvc.lock").write_text(lock)
    commit(scratch, "repaired")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 0
    assert "The base's dvc.lock cannot be read" in text
    code, text = reviewed("HEAD", "HEAD~1")
    assert code == 2
    assert "of the reviewed commit" in text
    assert "review-" not in text


def test_files_that_dvc_add_tracks(scratch: Path, reviewed: Reviewer) -> None:
    """A dependency that `dvc add` tracks is checked like an output of a stage."""
    (scratch / "raw.txt").write_text("raw")
    run(scratch, "dvc", "add", "-q", "raw.txt")
    change(scratch, "dvc.yaml", "deps: [make.py]", "deps: [make.py, raw.txt]")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 0
    assert "- **make**: `raw.txt` is not in dvc.lock" in text
    (scratch / "raw.txt").write_text("other")
    run(scratch, "dvc", "add", "-q", "raw.txt")
    commit(scratch, "other data, nothing run")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "- **make**: `raw.txt` is not the version that dvc.lock records as an output" in text


def test_later_commits_of_the_base_branch_do_not_count(scratch: Path, reviewed: Reviewer) -> None:
    """A branch as base stands for the commit at which HEAD left it; a commit as base stands for itself."""
    git(scratch, "checkout", "-q", "-b", "change")
    (scratch / "README.md").write_text("other words\n")
    commit(scratch, "words")
    git(scratch, "checkout", "-q", "main")
    change(scratch, "params.yaml", "width: 4", "width: 8")
    git(scratch, "checkout", "-q", "change")
    code, text = reviewed("main")
    assert code == 0
    assert "No parameter changed." in text
    assert reviewed(git(scratch, "rev-parse", "main").strip())[0] == 1


def test_a_removed_figure_has_changed(scratch: Path, reviewed: Reviewer) -> None:
    """A figure that only the base declares is listed as changed."""
    (scratch / "figure.png").unlink()
    text = (scratch / "measure.py").read_text().replace('pathlib.Path("figure.png")', "# ")
    (scratch / "measure.py").write_text(text)
    change(scratch, "dvc.yaml", "    plots:\n      - figure.png: {cache: false}\n", "")
    _, shown = reviewed("HEAD~1", "HEAD", "--file-url", "https://host.example/{commit}/{path}")
    assert "- **measure**: `measure.py` modified\n" in shown
    assert "| figure | ![figure](https://host.example/" in shown
    assert "figure.png) | — |" in shown


def test_from_a_subfolder(scratch: Path, reviewed: Reviewer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole repository is reviewed from any subfolder."""
    here = reviewed("bare", "HEAD")
    (scratch / "folder").mkdir()
    monkeypatch.chdir(scratch / "folder")
    assert reviewed("bare", "HEAD") == here


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("HEAD~9", "git fetch --deepen=10 origin"),
        ("ab" * 20, f"git fetch origin {'ab' * 20}"),
        ("origin/topic", "git fetch origin +refs/heads/topic:refs/remotes/origin/topic"),
        ("topic", "git fetch origin +refs/heads/topic:refs/remotes/origin/topic"),
    ],
)
def test_an_unknown_revision_comes_with_the_command_that_fetches_it(
    scratch: Path, reviewed: Reviewer, name: str, command: str
) -> None:
    """The error for an unknown ancestor, commit or branch names the command that fetches it."""
    hint = "there is no remote here; a branch or HEAD will do"
    expected = f"unknown revision {name!r} ({hint}); if it is on a remote, fetch it: {command}"
    assert reviewed(name, "HEAD") == (2, expected)


def test_a_deleted_metric_file_is_out_of_date(scratch: Path, reviewed: Reviewer) -> None:
    """A metric file that is in dvc.lock but not in git is not assumed to be in the cache."""
    (scratch / "metrics.json").unlink()
    commit(scratch, "no metrics")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "- **measure**: `metrics.json` deleted" in text


def test_a_dvc_lock_that_contradicts_itself_fails(scratch: Path, reviewed: Reviewer) -> None:
    """Different hashes for an output and the dependency on it, as after a bad merge, give exit code 3."""
    lock = (scratch / "dvc.lock").read_text()
    entry = "    - path: model.bin\n      hash: md5\n      md5: "
    assert lock.count(entry) == 2
    at = lock.index(entry) + len(entry)
    (scratch / "dvc.lock").write_text(lock[:at] + "ab" * 16 + lock[at + 32 :])
    commit(scratch, "bad merge")
    code, text = reviewed("HEAD~1", "HEAD")
    assert code == 3
    assert "- **measure**: `model.bin` is not the version" in text


def test_a_fresh_clone_without_cache(scratch: Path, reviewed: Reviewer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone without a cache gives the same report as the repository, and nothing in it changes."""
    change(scratch, "params.yaml", "width: 4", "width: 8")
    here = reviewed("HEAD~1", "HEAD")
    git(scratch.parent, "clone", "-q", str(scratch), "clone")
    monkeypatch.chdir(scratch.parent / "clone")
    assert reviewed("HEAD~1", "HEAD") == here
    assert here[0] == 0
    assert git(scratch.parent / "clone", "status", "--porcelain") == ""


def test_a_base_without_dvc(scratch: Path, reviewed: Reviewer) -> None:
    """Compared with a commit from before the pipeline everything is new, and the review passes."""
    code, text = reviewed("bare", "HEAD")
    assert code == 0
    assert "The base has no pipeline: everything is new." in text
    assert "| model.width | — | 4 |" in text
    assert "| test.mse | — | 0.1 |  |  | new |" in text
    assert "- **make**:" in text


def test_a_shallow_clone_fetches_the_base(scratch: Path, reviewed: Reviewer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a depth-1 clone of a branch the base is fetched from the remote, and the clone stays shallow."""
    git(scratch, "checkout", "-q", "-b", "change")
    change(scratch, "params.yaml", "width: 4", "width: 8")
    git(scratch.parent, "clone", "-q", "--depth=1", "--branch=change", scratch.as_uri(), "shallow")
    shallow = scratch.parent / "shallow"
    monkeypatch.chdir(shallow)
    code, text = reviewed("origin/main", "HEAD")
    assert code == 0
    assert "| model.width | 4 | 8 |" in text
    assert git(shallow, "rev-list", "--count", "HEAD").strip() == "1"


def test_a_shallow_clone_without_a_remote(scratch: Path, reviewed: Reviewer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the exact command that fetches the base."""
    git(scratch.parent, "clone", "-q", "--depth=1", scratch.as_uri(), "shallow")
    monkeypatch.chdir(scratch.parent / "shallow")
    git(Path(), "remote", "remove", "origin")
    code, text = reviewed("origin/main", "HEAD")
    assert code == 2
    assert "unknown revision 'origin/main'" in text
    command = text.split("fetch it: ")[1]
    assert command == "git fetch --depth=1 origin +refs/heads/main:refs/remotes/origin/main"
    git(Path(), "remote", "add", "origin", scratch.as_uri())
    subprocess.run(command.split(), check=True)
    assert reviewed("origin/main", "HEAD")[0] == 0


def test_a_detached_head(scratch: Path, reviewed: Reviewer) -> None:
    """A detached HEAD can be reviewed, because CI checks out commits, not branches."""
    change(scratch, "params.yaml", "width: 4", "width: 8")
    git(scratch, "checkout", "-q", "--detach")
    assert reviewed("main~1", "HEAD")[0] == reviewed("main~1")[0] == 0


def test_uncommitted_changes(scratch: Path, reviewed: Reviewer) -> None:
    """Without HEAD the working tree is reviewed and not changed."""
    (scratch / "params.yaml").write_text("model:\n  width: 8\n  name: plain\n")
    (scratch / "new.py").write_text("")
    before = git(scratch, "status", "--porcelain")
    code, text = reviewed("HEAD")
    assert code == 3
    assert "| model.width | 4 | 8 |" in text
    assert "Untracked files are not reviewed: `new.py`." in text
    run(scratch, "dvc", "repro")
    assert reviewed("HEAD")[0] == 0
    (scratch / "params.yaml").write_text("model:\n  width: 4\n  name: plain\n")
    run(scratch, "dvc", "repro")
    (scratch / "params.yaml").write_text("model:\n  width: 8\n  name: plain\n")
    assert git(scratch, "status", "--porcelain") == before
    assert git(scratch, "stash", "list") == ""


def test_a_file_rewritten_with_the_same_bytes_is_not_a_change(scratch: Path, reviewed: Reviewer) -> None:
    """A file with a new time but the same bytes is not a change, although git first assumes one."""
    params = scratch / "params.yaml"
    os.utime(params, (0, 0))
    assert reviewed("HEAD")[0] == 0


def test_two_dvc_experiments(scratch: Path, reviewed: Reviewer) -> None:
    """DVC experiments can be compared by their names."""
    for width in (5, 6):
        run(scratch, "dvc", "exp", "run", "-n", f"width-{width}", "-S", f"model.width={width}")
    code, text = reviewed("width-5", "width-6")
    assert code == 0
    assert "| model.width | 5 | 6 |" in text
    assert reviewed("width-6", "width-5")[0] == 1


def test_experiments_of_one_name_are_ambiguous(scratch: Path, reviewed: Reviewer) -> None:
    """If two baselines have experiments of the same name, the error lists their commits and baselines."""
    first = git(scratch, "rev-parse", "HEAD").strip()
    second = change(scratch, "params.yaml", "plain", "other", repro=False)
    for baseline in (first, second):
        git(scratch, "update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/same", baseline)
    git(scratch, "update-ref", "refs/exps/exec/EXEC_BASELINE", first)
    pairs = ", ".join(f"{commit[:10]} (of {commit[:10]})" for commit in sorted((first, second)))
    assert reviewed("same", "HEAD") == (2, f"2 experiments are called 'same'; use a commit instead: {pairs}")
    git(scratch, "update-ref", "-d", f"refs/exps/{second[:2]}/{second[2:]}/same")
    assert f"against `{first[:10]}`" in reviewed("same", "HEAD")[1]


def test_a_pull_request_is_named_by_its_head(scratch: Path, reviewed: Reviewer) -> None:
    """GitHub checks out a merge commit, but title and figures name the commit that was pushed."""
    git(scratch, "checkout", "-q", "-b", "change")
    pushed = change(scratch, "params.yaml", "width: 4", "width: 8")
    git(scratch, "checkout", "-q", "main")
    (scratch / "README.md").write_text("other words\n")
    base = commit(scratch, "words")
    git(scratch, "merge", "-q", "--no-ff", "-m", "merge", "change")
    code, text = reviewed("HEAD^1", "HEAD", "--file-url", "https://host.example/{commit}/{path}")
    assert code == 0
    assert text.startswith(f"## Review of `{pushed[:10]}` merged into `{base[:10]}`\n")
    assert f"| ![figure](https://host.example/{pushed}/figure.png) |" in text
    assert "merged into" not in reviewed("bare", "HEAD")[1]
    # The commit that stands for the working tree is a merge too.
    (scratch / "README.md").write_text("more words\n")
    assert "merged into" not in reviewed("HEAD")[1]


def test_figures_are_links_to_the_commits(scratch: Path, reviewed: Reviewer) -> None:
    """With --file-url each figure is shown next to its old version, by the URLs of the commits' files."""
    head = change(scratch, "params.yaml", "width: 4", "width: 8")
    base = git(scratch, "rev-parse", "HEAD~1").strip()
    _, text = reviewed("HEAD~1", "HEAD", "--file-url", "https://host.example/raw/{commit}/{path}")
    address = "![figure](https://host.example/raw/{}/figure.png)"
    assert f"| figure | {address.format(base)} | {address.format(head)} |" in text


def test_json_has_the_same_content(scratch: Path, reviewed: Reviewer) -> None:
    """--json prints the parameters, metrics with verdicts, stages, the lock's problems and the exit code."""
    change(scratch, "params.yaml", "width: 4", "width: 2")
    code, text = reviewed("HEAD~1", "HEAD", "--json")
    values: dict[str, Any] = json.loads(text)
    assert code == values["exit_code"] == 1
    assert values["params"] == [{"name": "model.width", "old": 4, "new": 2}]
    assert {metric["name"]: metric["verdict"] for metric in values["metrics"]} == {
        "test.mse": "worse",
        "test.psnr_db": "worse",
        "test.seen": "not judged",
    }
    assert values["lock"] == {}
    assert list(values["stages"]) == ["make", "measure"]


@pytest.mark.parametrize(
    ("tolerances", "expected"),
    [
        ("test.mse: {better: smaller}\n", "metrics.yaml is not valid: better"),
        ("test.mse: {better: lower, relative: -1}\n", "metrics.yaml is not valid: relative"),
        ("test.mse: [\n", "metrics.yaml is not valid"),
        ("- test.mse\n", "metrics.yaml is not valid"),
    ],
)
def test_bad_tolerances_are_misuse(scratch: Path, reviewed: Reviewer, tolerances: str, expected: str) -> None:
    """An invalid metrics.yaml gives exit code 2 and never passes."""
    (scratch / "metrics.yaml").write_text(tolerances)
    code, text = reviewed("HEAD")
    assert code == 2
    assert expected in text


def test_changed_tolerances_are_pointed_out(scratch: Path, reviewed: Reviewer) -> None:
    """A change of metrics.yaml itself is noted in the report."""
    change(scratch, "metrics.yaml", "0.05", "5.0")
    assert "`metrics.yaml` itself changed" in reviewed("HEAD~1", "HEAD")[1]


def test_misuse(scratch: Path, reviewed: Reviewer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A HEAD without a pipeline and a folder without git give exit code 2 and one line."""
    code, text = reviewed("HEAD", "bare")
    assert code == 2
    assert "has no dvc.yaml" in text
    monkeypatch.chdir(scratch.parent)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(scratch.parent.parent))
    code, text = reviewed("HEAD", "HEAD")
    assert code == 2
    assert "not a git repository" in text


def test_it_needs_neither_torch_nor_mlflow(scratch: Path) -> None:
    """The command works as a process in which torch, torchvision, mlflow, pandas and sklearn cannot be imported."""
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'mlflow', 'pandas', 'sklearn']))\n"
        "sys.argv = ['review', 'HEAD', 'HEAD']\n"
        "runpy.run_module('pipeline.review', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(PYTHONPATH=str(PROJECT)), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bug_is_not_taken_for_a_worse_metric(scratch: Path) -> None:
    """An unexpected error shows its traceback and has its own exit code, 70."""
    code = (
        "import dvc.repo, runpy, sys\n"
        "dvc.repo.Repo.__enter__ = lambda self: 1 / 0\n"
        "sys.argv = ['review', 'HEAD', 'HEAD']\n"
        "runpy.run_module('pipeline.review', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(PYTHONPATH=str(PROJECT)), capture_output=True, text=True
    )
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.slow
@pytest.mark.alone
def test_its_own_small_environment_is_enough_and_fast(tmp_path: Path) -> None:
    """With only requirements-review.txt installed it reviews this repository in ten seconds or less."""
    project = copy_project(tmp_path / "project")
    subprocess.run([sys.executable, "-m", "venv", "venv"], cwd=tmp_path, check=True)
    python = str(tmp_path / "venv/bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", str(project / "requirements-review.txt")], check=True)
    settings = environment() | {"PATH": f"{tmp_path / 'venv/bin'}{os.pathsep}{os.environ['PATH']}"}
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run(
            [python, "-m", "pipeline.review", "HEAD", "HEAD"], cwd=project, env=settings, capture_output=True, text=True
        )
        seconds.append(time.monotonic() - started)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "It matches the code" in done.stdout
    print(f"review of this repository: {sorted(seconds)[1]:.1f} s (median of 3)")
    assert sorted(seconds)[1] <= 10
