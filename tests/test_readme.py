"""The README's promises: its numbers, commands, paths, parameters, links and code are true."""

import json
import math
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from benchmarks.seed import REFERENCES
from benchmarks.throughput import BOTTLENECK_SIZE, N_LAYERS
from pipeline.experiment import EXPERIMENT
from pipeline.params import Params
from tests.helpers import PROJECT, run

README = (PROJECT / "README.md").read_text()
DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "reports/benchmarks/README.md",
    "docs/bottleneck-study.md",
    "docs/review.md",
    "docs/review-example.md",
    "docs/ray.md",
    "docs/remote.md",
    "docs/server.md",
    "docs/tracking.md",
    "docs/your-own-project.md",
]


def blocks(language: str) -> list[str]:
    return [text for name, text in re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL) if name == language]


def table_rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    table = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_results_are_those_of_the_committed_run() -> None:
    """MSE and PSNR in the table are the rounded numbers of reports/evaluate.json."""
    metrics = json.loads((PROJECT / "reports/evaluate.json").read_text())
    assert metrics["dataset"] == "mnist"
    test = metrics["test"]
    stated = re.findall(r"\| \**([\d.]+)\** \| ([\d.]+) dB \|", README)
    expected = [test["mse"], test["pca_mse"], test["mean_image_mse"]]
    assert [float(mse) for mse, _ in stated] == [round(mse, 4) for mse in expected]
    assert [float(psnr) for _, psnr in stated] == [round(-10 * math.log10(mse), 2) for mse in expected]


def test_what_the_bytes_depend_on_was_measured_on_the_committed_training() -> None:
    """With its parameters; other kernels lead to a network nearer to it than another seed does, as the README says."""
    measured = json.loads((PROJECT / "reports/benchmarks/reproducibility.json").read_text())
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    assert measured["params"] == {section: params[section] for section in ("model", "train")}
    rows = {row["variant"]: row for row in measured["rows"]}
    assert rows["again"]["identical"]
    of_seeds = [row["weights_relative_difference"] for name, row in rows.items() if name.startswith("train.seed")]
    of_others = [row["weights_relative_difference"] for name, row in rows.items() if not name.startswith("train.seed")]
    assert max(of_others) < min(of_seeds)
    assert "nearer to the first one than that of another seed" in README.replace("\n", " ")


def test_the_speed_is_what_was_measured() -> None:
    """The README's table has the medians of reports/benchmarks/throughput.json, and names what was not measured."""
    measured = json.loads((PROJECT / "reports/benchmarks/throughput.json").read_text())
    median = {name: values["median"] for name, values in measured["epoch_seconds"].items()}
    precisions = ("float32", "bfloat16")

    def cell(form: str, *needed: str) -> str:
        return form if set(needed) <= median.keys() else "not measured"

    versions = {name: f" ({version})" for name, version in measured["frameworks"].items()}
    others = {
        "original": "the original as it is",
        "original_loop": "the original's loop on our network",
        "lightning": f"PyTorch Lightning with a DataLoader{versions.get('lightning', '')}",
        "pythae": f"pythae's trainer{versions.get('pythae', '')}",
        "dataloader": "DataLoader and ToTensor, as PyTorch's examples",
    }
    median_or_0 = defaultdict(float, median)
    seconds, floors = ([median_or_0[f"{kind}{p}"] or 1 for p in precisions] for kind in ("", "floor_"))
    assert table_rows("How fast it is") == [
        ["this project", "", *(cell(f"{own:.1f} s", p) for p, own in zip(precisions, seconds, strict=True))],
        *(
            [
                words,
                cell(f"{median_or_0[name]:.1f} s", name),
                *(
                    cell(f"{median_or_0[name] / own:.2f}× as fast", name, p)
                    for p, own in zip(precisions, seconds, strict=True)
                ),
            ]
            for name, words in others.items()
        ),
        [
            "only the matrix products of our network",
            "",
            *(
                cell(f"{floor:.1f} s: {100 * floor / own:.0f} % of the time", p)
                for p, own, floor in zip(precisions, seconds, floors, strict=True)
            ),
        ],
    ]


def test_the_speed_on_a_gpu_is_what_was_measured() -> None:
    """The README's sentences have the numbers of reports/benchmarks/cuda.json."""
    cuda = json.loads((PROJECT / "reports/benchmarks/cuda.json").read_text())
    median = {name: values["median"] for name, values in cuda["training_seconds"].items()}
    fastest = min(("float32", "bfloat16"), key=lambda precision: median[precision])
    said = " ".join(README.split())
    assert f"on one {cuda['machine']['hardware']} the training steps of all {cuda['n_epochs']} epochs" in said
    assert f"take {median['float32']:.1f} s in float32 and {median['bfloat16']:.1f} s in bfloat16" in said
    for name, words in (("original", "the original as it is"), ("original_loop", "the original's loop on our network")):
        if name in median:
            assert f"{median[name] / median[fastest]:.1f} times as fast as {words}" in said


def test_the_sizes_of_the_networks_are_those_of_the_benchmark() -> None:
    """The README's layers and parameter counts are those of the two references with 5 layers and bottleneck size 10."""
    said = " ".join(README.split())
    millions = {}
    for name, network in REFERENCES.items():
        millions[name] = sum(p.numel() for p in network(BOTTLENECK_SIZE, N_LAYERS).parameters()) / 1e6
    assert f"4 linear layers in the encoder, 3 in the decoder and {millions['original']:.2f} million parameters" in said
    assert f"5 and 5 with {millions['original_loop']:.2f} million parameters" in said


def test_checkpoints_cost_what_was_measured() -> None:
    """The README's sentence has the numbers of reports/benchmarks/checkpoint.json; the limit is 3 % of training."""
    measured = json.loads((PROJECT / "reports/benchmarks/checkpoint.json").read_text())
    assert measured["percent_of_training"] <= 3
    assert f"{measured['percent_of_training']:.1f} % of the training" in README
    assert f"{measured['median_save_seconds']:.2f} s beside epochs of {measured['epoch_seconds']:.1f} s" in README
    assert f"to {measured['megabytes']:.0f} MB" in README


def test_the_committed_run_is_better_than_pca_and_within_the_bound() -> None:
    """The test MSE at the defaults is at most 0.040, PCA's 0.0555."""
    test = json.loads((PROJECT / "reports/evaluate.json").read_text())["test"]
    assert test["mse"] <= 0.040
    assert test["pca_mse"] == pytest.approx(0.0555, abs=1e-4)


def test_make_targets_exist() -> None:
    """Every `make …` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for name in DOCUMENTS:
        text = (PROJECT / name).read_text()
        named = re.findall(r"(?:`|^)(?:\w+=\S+ )?make ([a-z-]+)", text, re.MULTILINE)
        assert set(named) <= targets, name
    assert {"run", "ui", "test", "test-all", "lint", "clean"} <= targets


def test_dvc_commands_exist() -> None:
    """DVC knows every command that a document shows, with its options."""
    from dvc.cli.parser import get_main_parser

    shown = set()
    for name in DOCUMENTS:
        text = (PROJECT / name).read_text()
        shown |= {found.strip() for found in re.findall(r"(?<![\w/])dvc ((?!repro` )[a-z][^`#;&\n]*)", text)}
    assert len(shown) > 8
    for command in shown:
        words = [word for word in command.replace("$size", "2").split() if word != "…"]
        if words[0] in {"repro", "exp", "params", "metrics", "plots", "queue", "checkout", "status", "gc"}:
            get_main_parser().parse_args(words)


def test_what_runs_after_a_change_is_what_dvc_yaml_says() -> None:
    """Each row of the table: the stages that read what is changed, and those that read what these write."""
    stages = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]

    def paths(items: list[Any]) -> set[str]:
        return {item if isinstance(item, str) else next(iter(item)) for item in items}

    def rerun(change: str) -> set[str]:
        stale, changed = set[str](), {change}
        for name, stage in stages.items():  # in the pipeline's order
            read = paths(stage["deps"]) | set(stage.get("params", []))
            is_part = change.partition(".")[0] in read or any(item.startswith(f"{change}.") for item in read)
            if changed & read or is_part:
                stale.add(name)
                changed |= paths([out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])])
        return stale

    rest = "model.n_layers"
    for words, says in table_rows("Change a parameter, see what reruns"):
        named = [rest if "rest of" in words and word == "model" else word for word in re.findall(r"`([^`]+)`", words)]
        expected = {"everything": set(stages), "nothing: they cannot change a result": set[str]()}
        for change in named:
            assert rerun(change) == expected.get(says, set(re.findall(r"`(\w+)`", says))), change


def test_parameters_are_those_of_the_file() -> None:
    """The table lists every parameter with its default, no more and no fewer."""
    defaults = Params.model_validate(yaml.safe_load((PROJECT / "params.yaml").read_text())).flat()
    stated = {row[0].strip("`"): row[1].strip("`") for row in table_rows("Parameters")}
    assert stated == {key: "empty" if value is None else str(value) for key, value in defaults.items()}


def test_every_flag_of_the_seed_is_named() -> None:
    """Each flag of the seed has its parameter or its replacement."""
    for flag in [
        "--model_fn",
        "--gpu_id",
        "--n_epochs",
        "--batch_size",
        "--train_ratio",
        "--n_layers",
        "--btl_size",
        "--use_dropout",
        "--dropout_p",
        "--verbose",
    ]:
        assert f"`{flag}`" in README


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    """Every relative link of a document is a file of the repository."""
    for target in re.findall(r"\]\((?!http)([^)#]+)", (PROJECT / name).read_text()):
        assert (PROJECT / name).parent.joinpath(target).exists(), target


def test_every_guarantee_of_the_tracking_has_its_test() -> None:
    """Each row of the tables in docs/tracking.md and docs/ray.md names tests, and they exist."""
    rows = []
    for name, heading in (("tracking", "The table"), ("ray", "What holds")):
        table = (PROJECT / f"docs/{name}.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
        rows += [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 40
    for row in rows:
        tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert tests or "| the same |" in row, row
        for file, name in tests:
            (path,) = (PROJECT / "tests").rglob(file)
            assert f"def {name}(" in path.read_text(), name


def test_files_named_in_the_tree_exist() -> None:
    """The annotated tree names every folder of the pipeline and every file at its top, and nothing else."""
    (tree,) = blocks("")
    named = set(re.findall(r"\b(\w+\.py)\b", tree)) | set(re.findall(r"^  (\w+)/", tree, re.MULTILINE))
    there = {path.name for path in (PROJECT / "pipeline").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert named == there - {"__init__.py", "__pycache__"}
    for top in re.findall(r"^(\w[\w.]*/?)  ", tree, re.MULTILINE):
        assert (PROJECT / top).exists(), top


def test_error_messages_are_the_codes_own() -> None:
    """Every message in the table of failures is one that the code can print."""
    code = "".join(path.read_text() for path in (PROJECT / "pipeline").rglob("*.py"))
    for message in [row[0] for row in table_rows("When something fails")]:
        for part in re.split(r"…|` or `|`|5000", message):
            assert part.strip().replace("params.yaml", "{path}") in code, part


def test_the_python_examples_run(project: Path, tmp_path: Path) -> None:
    """The examples run as they stand, from the file, from MLflow, and from the weights that MLflow keeps.

    The newest run in the store was killed, and has no model.
    """
    from_file, from_mlflow = blocks("python")
    call = re.search(r"`(load_model\(mlflow\..*?\))`", README, re.DOTALL)
    assert call is not None
    shutil.copytree(project / "models", tmp_path / "models")
    for path in project.glob("mlflow.db*"):
        shutil.copy(path, tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT.name)
    assert experiment is not None
    client.set_terminated(client.create_run(experiment.experiment_id).info.run_id, "KILLED")
    (tmp_path / "example.py").write_text(
        f"{from_file}\nassert codes.numpy().shape == (5, 2) and images.numpy().shape == (5, 784)\n"
        f"{from_mlflow}\nassert images.numpy().shape == (5, 784)\n"
        f"model = {call[1]}\nassert model.encode(torch.rand(5, 784)).shape == (5, 2)\n"
    )
    run(tmp_path, "example", PYTHONPATH=str(PROJECT))


def test_no_file_names_a_registry() -> None:
    """The locks are complete and free of index addresses."""
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-review.txt", "requirements-cluster.txt"):
        lines = (PROJECT / name).read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith((" ", "#"))]
        assert all(re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", line) for line in pins)
        assert not any("://" in line for line in lines)
