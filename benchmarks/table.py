"""Write the results into the documents: the page reports/benchmarks/README.md, and the table in docs/speed.md.

    python -m benchmarks.table

Reads the results of the other benchmarks; `make bench` ends with it.
"""

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from pipeline.autoencoder.trainer import PRECISIONS

PAGE = RESULTS / "README.md"
SPEED_PAGE = Path("docs/speed.md")
# The speeds are written between these lines of that page.
SPEED_BEGINS = "<!-- speed: written by `python -m benchmarks.table` -->"
SPEED_ENDS = "<!-- end of speed -->"
# The programs that this project is compared with, by their names in the JSON files.
NAMES = {
    "original": "the original as it is",
    "original_loop": "the original's loop on our network",
    "lightning": "PyTorch Lightning with a DataLoader",
    "pythae": "pythae's trainer",
    "dataloader": "DataLoader and ToTensor, as PyTorch's examples",
}
REFERENCES = ("original", "original_loop")
Row = tuple[str, str, str, str]  # of the page's table: figure, measured, must, aim
NOT_MEASURED = "not measured"


def main() -> None:
    text = page(RESULTS)
    PAGE.write_text(text)
    print(text)
    before, rest = SPEED_PAGE.read_text().split(SPEED_BEGINS)
    SPEED_PAGE.write_text(before + speed_block(RESULTS) + rest.split(SPEED_ENDS)[1])


def speed_block(folder: Path) -> str:
    """Return the part of docs/speed.md that depends on throughput.json and cuda.json, with its two marker lines."""
    speed = json.loads((folder / "throughput.json").read_text())
    seconds = {name: values["median"] for name, values in speed["epoch_seconds"].items()}
    ours = [seconds.get(precision) for precision in ("float32", "bfloat16")]
    versions = {name: f" ({version})" for name, version in speed["frameworks"].items()}

    def line(name: str, cells: list[str]) -> str:
        return f"| {' | '.join([name, *cells])} |"

    def duration(value: float | None) -> str:
        return f"{value:.1f} s" if value else NOT_MEASURED

    def factor(name: str, our: float | None) -> str:
        return f"{seconds[name] / our:.2f}× as fast" if our and name in seconds else NOT_MEASURED

    def share(floor: float | None, our: float | None) -> str:
        return f"{floor:.1f} s: {100 * floor / our:.0f} % of the time" if floor and our else NOT_MEASURED

    floors = [seconds.get(f"floor_{precision}") for precision in ("float32", "bfloat16")]
    lines = [
        SPEED_BEGINS,
        "| 5 layers, bottleneck size 10, batches of 256 | an epoch | this project, float32 | bfloat16 |",
        "|---|---|---|---|",
        line("this project", ["", *map(duration, ours)]),
        *(
            line(words + versions.get(name, ""), [duration(seconds.get(name)), *(factor(name, our) for our in ours)])
            for name, words in NAMES.items()
        ),
        line("only the matrix products of our network", ["", *map(share, floors, ours)]),
        "",
        f"Medians of {len(speed['epoch_seconds']['float32']['all'])} epochs in turns on {describe(speed['machine'])}.",
        *gpu_lines(folder / "cuda.json"),
        SPEED_ENDS,
    ]
    return "\n".join(lines)


def gpu_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    result = json.loads(path.read_text())
    seconds = {name: values["median"] for name, values in result["training_seconds"].items()}
    fastest = min(PRECISIONS, key=lambda precision: seconds[precision])
    measured = [name for name in REFERENCES if name in seconds]
    factors = [f"{seconds[name] / seconds[fastest]:.1f} times as fast as {NAMES[name]}" for name in measured]
    said = (
        f"With `train.device=cuda` on one {result['machine']['hardware']} the training steps of all "
        f"{result['n_epochs']} epochs of the committed experiment take {seconds['float32']:.1f} s in float32 and "
        f"{seconds['bfloat16']:.1f} s in bfloat16. In {fastest} they are {' and '.join(factors)} there."
    )
    return ["", *textwrap.wrap(said, 120)]


def page(folder: Path) -> str:
    parts = {
        "throughput": throughput_rows,
        "cuda": cuda_rows,
        "time_to_quality": time_to_quality_rows,
        "quality": quality_rows,
        "growth": growth_rows,
        "overhead": overhead_rows,
    }
    results: dict[str, dict[str, Any]] = {}
    rows: list[Row] = []
    for name, rows_of in parts.items():
        path = folder / f"{name}.json"
        if path.is_file():
            results[name] = json.loads(path.read_text())
            rows += rows_of(results[name])
        else:
            rows.append((f"`python -m benchmarks.{name}`", NOT_MEASURED, "", ""))
    lines = [
        "# How fast it is, and how good",
        "",
        "<!-- `python -m benchmarks.table` writes this page from the JSON files next to it. -->",
        "",
        "Each ratio of speeds comes from one run in which the compared programs took turns. It is the ratio of the",
        "medians; the lowest and the highest of a round are in brackets. Each time to a quality is the median of the",
        "seeds' ratios. *The original as it is* trains its own, smaller network.",
        "*The original's loop on our network* trains the layers of this project's. Both are in `benchmarks/seed.py`.",
        "The bounds for the speed of a training step were set for equal networks. The docstrings of `benchmarks/`",
        "describe each row.",
        "",
        "| figure | measured | must | aim |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(f"- {name}: {describe(result['machine'])}" for name, result in results.items()),
        "",
        *recipe_lines(folder / "recipe.json"),
        *reproducibility_lines(folder / "reproducibility.json"),
    ]
    return "\n".join(lines)


def describe(machine: dict[str, Any]) -> str:
    cores = f"{machine['cores']} cores, " if "cores" in machine else ""
    return (
        f"{machine['hardware']} ({machine['cpu_capability']}), {cores}{machine['threads']} threads, "
        f"torch {machine['torch']}, Python {machine['python']}, {machine['system']}"
    )


def ratio(slow: list[float], fast: list[float]) -> str:
    """Return the lowest and the highest ratio over the rounds. Each round measured both."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"({min(ratios):.2f}…{max(ratios):.2f})"


def throughput_rows(result: dict[str, Any]) -> list[Row]:
    seconds = {name: values["all"] for name, values in result["epoch_seconds"].items()}
    bounds = {  # must and aim, which were set for equal networks
        ("original_loop", "bfloat16"): ("2.3×", "3×"),
        ("original_loop", "float32"): ("1.3×", "1.5×"),
        ("dataloader", "bfloat16"): ("4.5×", "6×"),
    }
    rows = []
    for name, words in NAMES.items():
        for precision in PRECISIONS:
            figure = f"samples/s over {words}, 5 layers, bottleneck size 10, {precision}"
            measured = NOT_MEASURED
            if name in seconds and precision in seconds:
                factor = statistics.median(seconds[name]) / statistics.median(seconds[precision])
                measured = f"{factor:.2f}× {ratio(seconds[name], seconds[precision])}"
            rows.append((figure, measured, *bounds.get((name, precision), ("", ""))))
    for precision in PRECISIONS:
        figure = f"share of the floor, only the matrix products of our network, {precision}"
        measured = NOT_MEASURED
        if precision in seconds:
            ours, floor = seconds[precision], seconds[f"floor_{precision}"]
            share = 100 * statistics.median(floor) / statistics.median(ours)
            measured = f"{share:.0f} % {ratio(floor, ours)}"
        rows.append((figure, measured, "55 %", "70 %"))
    return rows


def cuda_rows(result: dict[str, Any]) -> list[Row]:
    bounds = {"original_loop": ("5×, under 3 s", "20×, under 1 s")}
    seconds = result["training_seconds"]
    fastest = min(PRECISIONS, key=lambda precision: seconds[precision]["median"])
    ours = seconds[fastest]
    rows = []
    for name in REFERENCES:
        figure = (
            f"one CUDA GPU, the training steps of {result['n_epochs']} epochs of the committed experiment, {fastest}, "
            f"over {NAMES[name]} there"
        )
        measured = NOT_MEASURED
        if name in seconds:
            factor = seconds[name]["median"] / ours["median"]
            measured = f"{factor:.1f}× {ratio(seconds[name]['all'], ours['all'])}, {ours['median']:.2f} s"
        rows.append((figure, measured, *bounds.get(name, ("", ""))))
    return rows


def time_to_quality_rows(result: dict[str, Any]) -> list[Row]:
    rows = []
    for row in result["rows"]:
        changes = ", ".join(f"`train.{name}={value}`" for name, value in row["changes"].items())
        for name in REFERENCES:
            figure = (
                f"time to the validation MSE that {NAMES[name]} ends with after {row['n_epochs']} epochs, "
                f"{row['n_layers']} layers, bottleneck size {row['bottleneck_size']}, with {changes}, "
                f"{result['precision']}; wall time and processor time"
            )
            rows.append((figure, time_to_quality(row["ours"], row.get(name)), "6×", "12×"))
    return rows


def time_to_quality(ours: dict[str, Any], reference: dict[str, Any] | None) -> str:
    """Return how many times shorter our trainings were than the reference's by each clock, and both validation MSEs."""
    if reference is None:
        return NOT_MEASURED
    pairs = list(zip(reference["valid_mse"], ours["valid_mse"], strict=True))
    theirs, our = (statistics.mean(values) for values in zip(*pairs, strict=True))
    factors = [
        f"{statistics.median(a / b for a, b in zip(reference[clock]['all'], ours[clock]['all'], strict=True)):.1f}×"
        if clock in reference
        else NOT_MEASURED
        for clock in ("seconds", "processor_seconds")
    ]
    reached = sum(b <= a for a, b in pairs)
    return (
        f"{' and '.join(factors) if our <= theirs else 'not reached'}: {our:.4f} instead of {theirs:.4f}, "
        f"means of {len(pairs)} seeds, reached with {reached} of them"
    )


def quality_rows(result: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    bounds = {2: ("−8 %", "−14 %"), 10: ("−25 %", "−40 %"), 32: ("−25 %", "−40 %")}
    for row in result["at_equal_epochs"]:
        size, ours = row["bottleneck_size"], row["ours_test_mse"]
        for name in REFERENCES:
            theirs = row.get(f"{name}_test_mse")
            figure = (
                f"test MSE after {row['n_epochs']} epochs instead of that of {NAMES[name]}, {row['n_layers']} layers, "
                f"bottleneck size {size}, mean ± standard deviation of {len(ours['all'])} seeds"
            )
            measured = NOT_MEASURED
            if theirs:
                percent = f"{change(theirs, ours):+.0f}".replace("-", "−")
                measured = f"{deviating(ours)} instead of {deviating(theirs)}: {percent} %"
            rows.append((figure, measured, *bounds[size]))
    row = result["precisions"]
    in_float32, in_bfloat16 = row["float32_test_mse"], row["bfloat16_test_mse"]
    how = "" if result["precision"] == "bfloat16" else ", products rounded as by bfloat16 instructions"
    rows.append(
        (
            f"test MSE in bfloat16 instead of float32, {row['n_epochs']} epochs, {row['n_layers']} layers, "
            f"bottleneck size {row['bottleneck_size']}, means of {len(in_bfloat16['all'])} seeds{how}",
            f"{in_bfloat16['mean']:.5f} instead of {in_float32['mean']:.5f}: "
            f"{change(in_float32, in_bfloat16):+.1f} %".replace("-", "−"),
            "within 1 %",
            "",
        )
    )
    committed = result["committed_experiment"]
    values = committed["ours_test_mse"]
    rows.append(
        (
            f"test MSE of the committed experiment, {committed['n_epochs']} epochs, {committed['n_layers']} layers, "
            f"bottleneck size {committed['bottleneck_size']}, mean ± standard deviation of {len(values['all'])} seeds",
            deviating(values),
            "",
            "",
        )
    )
    return rows


def deviating(values: dict[str, Any]) -> str:
    return f"{values['mean']:.4f} ± {values['standard_deviation']:.4f}"


def change(old: dict[str, Any], new: dict[str, Any]) -> float:
    """Return the change of the mean in percent of the old mean."""
    return 100 * (new["mean"] / old["mean"] - 1)


def growth_rows(result: dict[str, Any]) -> list[Row]:
    return [
        (
            f"samples/s of the last 10 of {result['n_epochs']} epochs over those of the first 10 (medians)",
            f"{result['last_over_first']:.2f}",
            "0.90…1.10",
            "",
        ),
        (
            f"peak memory in {result['n_epochs']} epochs; resident after the first and the last",
            f"{result['peak_megabytes']} MB; {result['megabytes_after_epoch'][0]} and "
            f"{result['megabytes_after_epoch'][-1]} MB",
            "1500 MB, not growing",
            "",
        ),
    ]


def overhead_rows(result: dict[str, Any]) -> list[Row]:
    values = result["outside_seconds"]["all"]
    measured = f"{result['outside_seconds']['median']:.0f} s ({min(values):.0f}…{max(values):.0f})"
    name = f"`dvc repro` outside of the training steps, {result['n_epochs']} epochs"
    once = result["outside_seconds_with_one_epoch"]["median"] - result["outside_seconds_per_epoch"]
    each = f"{result['outside_seconds_per_epoch']:.1f} s an epoch, for validation and checkpoint"
    by_data = sum(result["stage_seconds"][stage]["median"] for stage in ("prepare", "baselines", "pca_probes"))
    shared = f"{by_data:.0f} s of it for prepare, baselines and pca_probes, which another training does not repeat"
    return [(name, f"{measured}: {once:.0f} s once, {shared}, and {each}", "40 s", "20 s")]


def recipe_lines(path: Path) -> list[str]:
    """Return the section on the training parameters: the validation MSE with one of them changed at a time."""
    if not path.is_file():
        return [f"`python -m benchmarks.recipe`: {NOT_MEASURED}.", ""]
    result = json.loads(path.read_text())
    committed = result["rows"][0]["valid_mse"]
    return [
        f"Validation MSE after {result['n_epochs']} epochs, {result['n_layers']} layers, bottleneck size "
        f"{result['bottleneck_size']}, seed {result['seed']}, each time the lowest of an epoch:",
        "",
        "| parameters | validation MSE | |",
        "|---|---|---|",
        *(
            f"| {row['changes']} | {row['valid_mse']:.5f} | "
            f"{100 * (row['valid_mse'] / committed - 1):+.1f} % |".replace("-", "−")
            for row in result["rows"]
        ),
        "",
        f"- recipe: {describe(result['machine'])}",
        "",
    ]


def reproducibility_lines(path: Path) -> list[str]:
    """Return the section on what a training's bytes depend on, compared with the effect of another seed."""
    if not path.is_file():
        return [f"`python -m benchmarks.reproducibility`: {NOT_MEASURED}.", ""]
    result = json.loads(path.read_text())

    def line(row: dict[str, Any]) -> str:
        same, apart = (
            ("identical", "0") if row["identical"] else ("different", f"{row['weights_relative_difference']:.2g}")
        )
        return f"| {row['variant']} | {same} | {apart} | {row['test_mse']:.5f} |"

    return [
        "## What the bytes depend on",
        "",
        f"The committed training, {result['n_epochs']} epochs, in processes each of which has one thing changed;",
        "how far its weights are from those of the first: the L2 norm of the difference over theirs.",
        "",
        "| the same training, but | bytes | weights apart | test MSE |",
        "|---|---|---|---|",
        *map(line, result["rows"]),
        "",
        f"- reproducibility: {describe(result['machine'])}",
        "",
    ]


if __name__ == "__main__":
    main()
