"""Reading dvc.yaml and dvc.lock from inside a stage."""

from pathlib import Path

import pytest

from pipeline.core import dvcfiles
from pipeline.core.errors import PipelineError
from tests.helpers import PROJECT, git, run


def test_declared_paths_include_metrics_and_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declared outs include metrics and plots, also if the path has settings."""
    monkeypatch.chdir(PROJECT)
    evaluate = dvcfiles.declared("evaluate")
    assert {"reports/evaluate.json", "reports/figures/latent.png"} <= set(evaluate["outs"])
    assert "models/autoencoder.safetensors" in evaluate["deps"]
    assert "models/autoencoder.safetensors" in dvcfiles.all_outs()


def test_a_stage_is_up_to_date_when_dvc_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`is_up_to_date` agrees with `dvc status`: after a run, and after a change of any kind."""
    monkeypatch.chdir(project)
    stages = ("prepare", "baselines", "pca_probes", "train", "evaluate")
    assert all(map(dvcfiles.is_up_to_date, stages))

    for file, old, new, stale in (
        ("params.yaml", "manifold_size: 5", "manifold_size: 6", {"evaluate"}),
        ("params.yaml", "seed: 0", "seed: 1", {"prepare", "train"}),  # split_seed and seed
        ("params.yaml", "bottleneck_size: 2", "bottleneck_size: 3", {"pca_probes", "train", "evaluate"}),
        ("params.yaml", "n_layers: 2", "n_layers: 3", {"train", "evaluate"}),
        ("pipeline/autoencoder/figures.py", '"""The figures', '"""Figures', {"evaluate"}),
        ("reports/pca.csv", "n_components", "components", {"baselines"}),
        ("params.yaml", "lr: 0.005\n", "lr: 5e-3\n", set()),  # plain PyYAML reads this as text
        ("dvc.yaml", "-m pipeline.train", "-B -m pipeline.train", {"train"}),
    ):
        path = project / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        ours = {stage for stage in stages if not dvcfiles.is_up_to_date(stage)}
        dvc = run(project, "dvc", "status").stdout
        assert ours == stale == {stage for stage in stages if f"{stage}:\n" in dvc}
        path.write_text(text)


@pytest.mark.parametrize(
    ("declared", "locked", "expected"),
    [
        ("[model, other.yaml: ]", "{params.yaml: {model: {width: 4}}, other.yaml: {lr: 1}}", True),
        ("[model.width, other.yaml: [lr]]", "{params.yaml: {model.width: 4}, other.yaml: {lr: 1}}", True),
        ("[model, train]", "{params.yaml: {model: {width: 4}}}", False),
        ("[model]", "{params.yaml: {model: {width: 4}, train: {seed: 0}}}", False),
        ("[model]", "{params.yaml: {model: {width: 5}}}", False),
        ("[model]", "{}", False),
        ("[model]", "{params.yaml: {model: {width: 4}}, other.yaml: {lr: 1}}", False),
        ("[other.yaml: ]", "{other.yaml: {lr: 1, momentum: 0}}", False),
    ],
)
def test_a_stage_is_up_to_date_with_the_parameters_that_it_declares(
    tmp_dir: Path, declared: str, locked: str, expected: bool
) -> None:
    """A stage is up to date only if dvc.lock has exactly the declared parameters, with the files' values."""
    (tmp_dir / "params.yaml").write_text("model: {width: 4}\ntrain: {seed: 0}\n")
    (tmp_dir / "other.yaml").write_text("lr: 1\n")
    (tmp_dir / "dvc.yaml").write_text(f"stages:\n  make: {{cmd: make, params: {declared}}}\n")
    (tmp_dir / "dvc.lock").write_text(f"stages:\n  make: {{cmd: make, params: {locked}}}\n")
    assert dvcfiles.is_up_to_date("make") == expected


def test_nothing_is_up_to_date_before_the_first_run(tmp_dir: Path) -> None:
    """Without a dvc.lock no stage is up to date."""
    (tmp_dir / "dvc.yaml").write_text((PROJECT / "dvc.yaml").read_text())
    assert not dvcfiles.is_up_to_date("evaluate")


def test_empty_lock_records_no_stage(tmp_dir: Path) -> None:
    """An empty dvc.lock, as a kill may leave it, records no stage; one with merge conflicts is an error."""
    (tmp_dir / "dvc.yaml").write_text((PROJECT / "dvc.yaml").read_text())
    (tmp_dir / "dvc.lock").write_text("")
    assert not dvcfiles.is_up_to_date("evaluate")
    (tmp_dir / "dvc.lock").write_text("<<<<<<< HEAD\nstages: {}\n=======\n")
    with pytest.raises(PipelineError, match=r"dvc\.lock is not valid YAML"):
        dvcfiles.is_up_to_date("evaluate")


def test_md5s_equal_those_of_dvc(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hashes are those that dvc.lock records."""
    monkeypatch.chdir(project)
    path = "models/autoencoder.safetensors"
    assert f"{path}\n      hash: md5\n      md5: {dvcfiles.md5s([path])[path]}" in Path("dvc.lock").read_text()
    assert dvcfiles.md5s(["nowhere"]) == {}
    assert git(project, "status", "--porcelain", "--", "pipeline", "dvc.yaml") == ""


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        ([], ["prepare", "baselines", "pca_probes", "train", "evaluate"]),
        (["data.split_seed"], []),
        (["model.bottleneck_size"], ["prepare", "baselines"]),
        (["model.n_layers", "train.lr"], ["prepare", "baselines", "pca_probes"]),
        (["evaluate.manifold_size"], ["prepare", "baselines", "pca_probes", "train"]),
    ],
)
def test_stages_that_do_not_depend_on_a_parameter(
    monkeypatch: pytest.MonkeyPatch, names: list[str], stages: list[str]
) -> None:
    """`stages_without` returns the stages that trials with different values of these parameters share."""
    monkeypatch.chdir(PROJECT)
    assert dvcfiles.stages_without(names) == stages


def test_stage_with_all_of_params_yaml_depends_on_every_parameter(tmp_dir: Path) -> None:
    """A stage with `params.yaml:` (DVC's syntax for a whole file) depends on every parameter."""
    Path("dvc.yaml").write_text("stages: {all: {cmd: make, params: [{params.yaml: }]}, none: {cmd: make}}")
    assert dvcfiles.stages_without(["a.b"]) == ["none"]


def test_folder_dependency_includes_the_files_in_it(tmp_dir: Path) -> None:
    """A stage depends on another if its dependency contains, or lies in, the other's output."""
    Path("dvc.yaml").write_text(
        "stages:\n"
        "  write: {cmd: make, params: [data], outs: [data/raw/a, models]}\n"
        "  folder: {cmd: make, deps: [data/raw]}\n"
        "  file: {cmd: make, deps: [models/b]}\n"
        "  other: {cmd: make, deps: [data/rawest]}\n"
    )
    assert dvcfiles.stages_without(["data.seed"]) == ["other"]


def test_ancestors_and_descendants_are_those_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ancestors and descendants follow dvc.yaml's graph; an unknown stage has none."""
    monkeypatch.chdir(PROJECT)
    assert dvcfiles.with_ancestors({"train"}) == {"prepare", "train"}
    assert dvcfiles.with_ancestors({"evaluate"}) == set(dvcfiles.all_stages())
    assert dvcfiles.with_descendants({"baselines"}) == {"baselines", "pca_probes", "evaluate"}
    assert dvcfiles.with_descendants({"missing"}) == dvcfiles.with_ancestors({"missing"}) == set()


def test_contents_survive_a_move_of_code() -> None:
    """`contents` ignores the paths of Python files, but not their contents or the paths of data."""
    before = dvcfiles.contents({"pipeline/model.py": "1", "pipeline/other.py": "2", "data/train": "3"})
    assert dvcfiles.contents({"pipeline/a/model.py": "2", "pipeline/b.py": "1", "data/train": "3"}) == before
    assert dvcfiles.contents({"pipeline/a/model.py": "2", "pipeline/b.py": "1", "data/test": "3"}) != before
    assert dvcfiles.contents({"pipeline/a/model.py": "2", "pipeline/b.py": "9", "data/train": "3"}) != before
