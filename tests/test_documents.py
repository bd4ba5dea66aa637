"""The documents' promises: their numbers, commands, paths, parameters, links, code and words."""

import json
import math
import re
import shutil
import subprocess
import sys
import tokenize
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from benchmarks.seed import REFERENCES
from benchmarks.throughput import BOTTLENECK_SIZE, N_LAYERS
from docs import generate
from pipeline.experiment import EXPERIMENT
from tests.helpers import PROJECT, environment_with_make, git, run

DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/README.md",
    "reports/benchmarks/README.md",
    *sorted(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md")),
]
MOST_LINES_OF_README = 150
# The pages whose commands a test runs, in their order.
RUN_PAGES = ["README.md", "docs/tutorial.md", "docs/troubleshooting.md", "docs/your-own-project.md", "docs/explorer.md"]
# The commands on these and on the other pages that no test runs as they stand, and why.
NOT_RUN = {
    r"git clone REPOSITORY .*": "needs the repository's address; the test starts in a copy",
    r"cd (mnist-autoencoder|\.\./my-project)": "the test starts there",
    r"dvc exp run -S model\.n_layers=10 .*": "twenty epochs of ten layers: tests/test_benchmarks.py compares it",
    r"make ui": "serves until it is stopped: tests/tracking/test_ui.py",
    r"make sweep": "the default grid is 18 trainings: tests/sweep/test_sweep.py",
    r"make sweep (SWEEP|JOBS)=.*": "an hour, or a GPU: the study",
    r"make sweep ENGINE=ray.*": "tests/sweep/test_ray_engine.py, test_ray_cluster.py",
    r"make compare": "needs the sweep before it; the tutorial's runs",
    r"(mlflow models serve|curl) .*": "tests/autoencoder/test_served_model.py",
    r"make verify": "tests/review/test_verify.py",
    r"make setup-cluster": "installs packages",
    r"make server.*|make move-store": "tests/server",
    r"ssh .*|export .*|read .*|pg_dumpall .*|cp .*": "a team's server: tests/server",
    r"(dvc (remote|push|pull|gc)|git (commit|fetch)) ?.*|dvc exp (push|list|pull|apply) .*|dvc repro|make sync": (
        "a remote over SSH: tests/test_remote.py"
    ),
    r"\.venv/bin/python -m pip install .*dvc-s3": "needs an account",
    r"python -m pipeline\.review .*|python -m pipeline\.review|make review BASE=origin/main": (
        "needs this repository's history: tests/review/test_review.py"
    ),
}
# Habits that cost a reader a second pass: WORDS, and what stands in their place in plain English.
WORDS = {
    r"\banew\b": "again, from scratch",
    r"\bbeside\b": "compared with, next to",
    r"\bof (its|their|his|her|your|our) own\b(?! \w)|\bof (yours|ours)\b": "its own …, a separate …",
    r"\b(is|are|was|were) told\b": "is reported",
    r"\b(goes|going|gone|went) on\b": "resumes, continues",
    r"\b(stands?|stood) above\b": "see above",
    r"\bmeanwhile\b": "in the meantime",
    r"\bwants\b": "needs, requires",
    r"(?<![Tt]here )\b(is|are) no (?!longer|more|less|such)": "is not a",
    r"\bfor all that\b|\ball the same\b": "still",
}


# What of a source file people read. Since Python 3.12 the text of f-strings is in tokens of a third kind.
PROSE = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def text_of(name: str) -> str:
    return (PROJECT / name).read_text()


README = text_of("README.md")


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a document in a language."""
    return [text for found, text in re.findall(r"```(\w*)\n(.*?)```", text_of(name), re.DOTALL) if found == language]


def table_rows(name: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading of a document."""
    table = text_of(name).split(f"{heading}\n", 1)[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shell_lines(name: str) -> list[str]:
    """The commands of a document's shell blocks, without comments; of `console` blocks what follows a prompt."""
    lines = [line for block in blocks(name, "sh") for line in block.replace("\\\n", " ").splitlines()]
    lines += [line[2:] for block in blocks(name, "console") for line in block.splitlines() if line.startswith("$ ")]
    return [command for line in lines if (command := re.sub(r"(^|\s+)# .*", "", line).strip())]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES_OF_README


def test_generated_pages_are_those_of_the_code() -> None:
    """`make docs` changes nothing."""
    for name, text in generate.pages().items():
        assert text_of(f"docs/{name}") == text, f"docs/{name}: run `make docs`"


def test_the_index_has_every_page() -> None:
    """docs/README.md links each document under docs/."""
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", text_of("docs/README.md")))
    assert linked == {path.name for path in (PROJECT / "docs").glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_in_plain_english(name: str) -> None:
    """None of the phrases in WORDS; quoted code and tables of test names aside."""
    assert bad_words(re.sub(r"```.*?```", "", text_of(name), flags=re.DOTALL)) == {}


@pytest.mark.parametrize("folder", ["pipeline", "examples", "benchmarks", "docs", "tests"])
def test_code_is_in_plain_english(folder: str) -> None:
    """None of the phrases in WORDS is in a docstring, a comment or a message."""
    found = {}
    for path in (PROJECT / folder).rglob("*.py"):
        if path == Path(__file__):
            continue
        with path.open() as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type in PROSE and (bad := bad_words(token.string)):
                    found[f"{path.relative_to(PROJECT)}:{token.start[0]}"] = bad
    assert found == {}


def bad_words(text: str) -> dict[str, str]:
    """Return {phrase: what to write} of the phrases in WORDS that a text has outside of quoted code."""
    prose = re.sub(r"`[^`]*`", "", text)
    return {found[0]: better for word, better in WORDS.items() if (found := re.search(word, prose))}


def test_every_command_runs_or_has_a_reason() -> None:
    """Each shell line of each document is on a page that a test runs, or fits a pattern in NOT_RUN, and each pattern
    fits a line."""
    unused, without_reason = set(NOT_RUN), []
    for name in DOCUMENTS:
        for line in shell_lines(name):
            patterns = {pattern for pattern in NOT_RUN if re.fullmatch(pattern, line)}
            unused -= patterns
            if not patterns and name not in RUN_PAGES:
                without_reason.append(f"{name}: {line}")
    assert without_reason == []
    assert unused == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_PAGES)
def test_the_commands_of_a_page_run(name: str, project: Path, tmp_path: Path) -> None:
    """In their order, in a repository with a small network on digits, without NOT_RUN and with smaller grids."""
    folder = shutil.copytree(project, tmp_path / "mnist-autoencoder", symlinks=True)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "small")
    variables = environment_with_make(tmp_path)
    (folder / ".venv").symlink_to(sys.prefix)
    skipped = [pattern for pattern in NOT_RUN if not pattern.startswith(("make compare", "cd "))]
    lines = [line for line in shell_lines(name) if not any(re.fullmatch(pattern, line) for pattern in skipped)]
    lines = [
        line.replace("=2,4,8 ", "=2,4 ").replace("=0,1,2'", "=0'") for line in lines if line != "cd mnist-autoencoder"
    ]
    # A network of two epochs may be worse in some metric; make then ends with 2.
    lines = [f"{line} || test $? = 2" if line.startswith("make review") else line for line in lines]
    script = "\n".join(["set -ex", *lines])
    command = ["bash", "-c", script]
    done = subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


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
    """With its parameters. Other kernels lead to a network nearer to it than another seed does, as the page says."""
    measured = json.loads((PROJECT / "reports/benchmarks/reproducibility.json").read_text())
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    assert measured["params"] == {section: params[section] for section in ("model", "train")}
    rows = {row["variant"]: row for row in measured["rows"]}
    assert rows["again"]["identical"]
    of_seeds = [row["weights_relative_difference"] for name, row in rows.items() if name.startswith("train.seed")]
    of_others = [row["weights_relative_difference"] for name, row in rows.items() if not name.startswith("train.seed")]
    assert max(of_others) < min(of_seeds)
    assert "nearer to the first one than that of another seed" in text_of("docs/reproducibility.md").replace("\n", " ")


def test_the_speed_is_what_was_measured() -> None:
    """The page's table has the medians of reports/benchmarks/throughput.json, and names what was not measured."""
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
    assert table_rows("docs/speed.md", "# Speed") == [
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
    """The sentences of docs/speed.md have the numbers of reports/benchmarks/cuda.json."""
    cuda = json.loads((PROJECT / "reports/benchmarks/cuda.json").read_text())
    median = {name: values["median"] for name, values in cuda["training_seconds"].items()}
    fastest = min(("float32", "bfloat16"), key=lambda precision: median[precision])
    said = " ".join(text_of("docs/speed.md").split())
    assert f"on one {cuda['machine']['hardware']} the training steps of all {cuda['n_epochs']} epochs" in said
    assert f"take {median['float32']:.1f} s in float32 and {median['bfloat16']:.1f} s in bfloat16" in said
    for name, words in (("original", "the original as it is"), ("original_loop", "the original's loop on our network")):
        if name in median:
            assert f"{median[name] / median[fastest]:.1f} times as fast as {words}" in said


def test_the_sizes_of_the_networks_are_those_of_the_benchmark() -> None:
    """The layers and parameter counts of docs/speed.md are those of both references with 5 layers and size 10."""
    said = " ".join(text_of("docs/speed.md").split())
    millions = {}
    for name, network in REFERENCES.items():
        millions[name] = sum(p.numel() for p in network(BOTTLENECK_SIZE, N_LAYERS).parameters()) / 1e6
    assert f"4 linear layers in the encoder, 3 in the decoder and {millions['original']:.2f} million parameters" in said
    assert f"5 and 5 with {millions['original_loop']:.2f} million parameters" in said


def test_checkpoints_cost_what_was_measured() -> None:
    """docs/reproducibility.md has the numbers of reports/benchmarks/checkpoint.json; the limit is 3 % of training."""
    said = " ".join(text_of("docs/reproducibility.md").split())
    measured = json.loads((PROJECT / "reports/benchmarks/checkpoint.json").read_text())
    assert measured["percent_of_training"] <= 3
    assert f"{measured['percent_of_training']:.1f} % of the training" in said
    assert f"{measured['median_save_seconds']:.2f} s next to epochs of {measured['epoch_seconds']:.1f} s" in said
    assert f"to {measured['megabytes']:.0f} MB" in text_of("docs/troubleshooting.md")


def test_the_committed_run_is_better_than_pca_and_within_the_bound() -> None:
    """The test MSE at the defaults is at most 0.040, PCA's 0.0555."""
    test = json.loads((PROJECT / "reports/evaluate.json").read_text())["test"]
    assert test["mse"] <= 0.040
    assert test["pca_mse"] == pytest.approx(0.0555, abs=1e-4)


def test_make_targets_exist() -> None:
    """Every `make …` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile") + text_of("project.mk"), re.MULTILINE))
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
        text = text_of(name)
        if name == "docs/commands.md":  # the commands' help mentions DVC's commands by their name only
            continue
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
    for words, says in table_rows("README.md", "## Change a parameter, see what reruns"):
        named = [rest if "rest of" in words and word == "model" else word for word in re.findall(r"`([^`]+)`", words)]
        expected = {"everything": set(stages), "nothing: it cannot change a result": set[str]()}
        for change in named:
            assert rerun(change) == expected.get(says, set(re.findall(r"`(\w+)`", says))), change


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
        assert f"`{flag}`" in text_of("docs/parameters.md")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    """Every relative link of a document is a file of the repository."""
    for target in re.findall(r"\]\((?!http)([^)#]+)", (PROJECT / name).read_text()):
        assert (PROJECT / name).parent.joinpath(target).exists(), target


def test_every_guarantee_of_the_tracking_has_its_test() -> None:
    """Each row of the tables in docs/tracking.md, docs/ray.md and SECURITY.md names tests, and they exist."""
    rows = []
    for name, heading in (("docs/tracking", "The table"), ("docs/ray", "What holds"), ("SECURITY", "What holds")):
        table = text_of(f"{name}.md").split(f"## {heading}\n")[1].split("\n## ")[0]
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
    (tree,) = blocks("README.md", "")
    named = set(re.findall(r"\b(\w+\.py)\b", tree)) | set(re.findall(r"^  (\w+)/", tree, re.MULTILINE))
    there = {path.name for path in (PROJECT / "pipeline").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert named == there - {"__init__.py", "__pycache__"}
    for top in re.findall(r"^(\w[\w.]*/?)  ", tree, re.MULTILINE):
        assert (PROJECT / top).exists(), top


def test_error_messages_are_the_codes_own() -> None:
    """Every message in the table of failures is one that the code can print."""
    code = "".join(path.read_text() for path in (PROJECT / "pipeline").rglob("*.py"))
    for message in [row[0] for row in table_rows("docs/troubleshooting.md", "## When something fails")]:
        for part in re.split(r"…|` or `|`|5000", message):
            assert part.strip().replace("params.yaml", "{path}") in code, part


def test_the_python_examples_run(project: Path, tmp_path: Path) -> None:
    """The examples run as they stand, from the file, from MLflow, and from the weights that MLflow keeps.

    The newest run in the store was killed, and has no model.
    """
    from_file, from_mlflow, from_weights = blocks("docs/models.md", "python")
    shutil.copytree(project / "models", tmp_path / "models")
    for path in project.glob("mlflow.db*"):
        shutil.copy(path, tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT.name)
    assert experiment is not None
    client.set_terminated(client.create_run(experiment.experiment_id).info.run_id, "KILLED")
    (tmp_path / "example.py").write_text(
        f"{from_file}\nassert codes.numpy().shape == (5, 2) and images.numpy().shape == (5, 784)\n"
        f"{from_mlflow}\nassert reconstructions.shape == decoded.shape == (5, 784) and codes.shape == (5, 2)\n"
        f"{from_weights}\nassert model.encode(torch.rand(5, 784)).shape == (5, 2)\n"
    )
    run(tmp_path, "example", PYTHONPATH=str(PROJECT))


def test_no_file_names_a_registry() -> None:
    """The locks are complete and free of index addresses."""
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-review.txt", "requirements-cluster.txt"):
        lines = (PROJECT / name).read_text().splitlines()
        pins = [line for line in lines if line and not line.startswith((" ", "#"))]
        assert all(re.match(r"[\w.-]+(\[[\w,-]+\])?==\S+", line) for line in pins)
        assert not any("://" in line for line in lines)
