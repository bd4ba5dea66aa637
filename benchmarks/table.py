"""The measured speed beside what it must reach, as the page reports/benchmarks/README.md.

    python -m benchmarks.table

Reads the results of the other benchmarks; `make bench` ends with it.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS

PAGE = RESULTS / "README.md"
Row = tuple[str, str, str, str]  # of the table: figure, measured, must, aim
NOT_MEASURED = "not measured"


def main() -> None:
    text = page(RESULTS)
    PAGE.write_text(text)
    print(text)


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
        "<!-- `python -m benchmarks.table` writes this page from the JSON files beside it. -->",
        "",
        "Every ratio comes from one run in which what is compared took turns: of the medians, and in brackets the",
        "lowest and the highest of a round. The original's loop is `benchmarks/seed.py`; what each row does is in the",
        "docstrings of `benchmarks/`.",
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
    """The lowest and the highest ratio of the rounds, in each of which both were measured."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"({min(ratios):.2f}…{max(ratios):.2f})"


def throughput_rows(result: dict[str, Any]) -> list[Row]:
    seconds = {name: values["all"] for name, values in result["epoch_seconds"].items()}
    fastest = result["fastest_precision"]
    native = "" if "bfloat16" in seconds else "; this processor has no bfloat16 instructions, so this is float32"
    rows = [
        (
            f"samples/s over the original's loop, 5 layers, bottleneck size 10{native}",
            f"{result['speedup_over_seed']:.2f}× {ratio(seconds['seed'], seconds[fastest])}",
            "2.3×",
            "3×",
        ),
        (
            "the same in float32",
            f"{result['speedup_over_seed_float32']:.2f}× {ratio(seconds['seed'], seconds['float32'])}",
            "1.3×",
            "1.5×",
        ),
    ]
    for precision, share in result["share_of_floor"].items():
        measured = f"{100 * share:.0f} % {ratio(seconds[f'floor_{precision}'], seconds[precision])}"
        rows.append((f"share of the floor, the matrix products alone, {precision}", measured, "55 %", "70 %"))
    measured = f"{result['speedup_over_dataloader']:.2f}× {ratio(seconds['dataloader'], seconds[fastest])}"
    rows.append((f"samples/s over DataLoader and ToTensor, {fastest}", measured, "4.5×", "6×"))
    return rows


def cuda_rows(result: dict[str, Any]) -> list[Row]:
    fastest = result["fastest_precision"]
    ours, seed = (result["training_seconds"][name] for name in (fastest, "seed"))
    return [
        (
            f"one CUDA GPU, the training steps of {result['n_epochs']} epochs of the committed experiment, {fastest}, "
            "over the original's loop there",
            f"{result['speedup_over_seed']:.1f}× {ratio(seed['all'], ours['all'])}, {ours['median']:.2f} s",
            "5×, under 3 s",
            "20×, under 1 s",
        )
    ]


def time_to_quality_rows(result: dict[str, Any]) -> list[Row]:
    rows = []
    for row in result["rows"]:
        n_seeds = len(row["reached"])
        ours, original = (statistics.mean(row[f"{name}_valid_mse"]) for name in ("our", "original"))
        speedup = f"{row['median_speedup']:.1f}×" if ours <= original else "not reached"
        changes = ", ".join(f"`train.{name}={value}`" for name, value in row["changes"].items())
        rows.append(
            (
                f"seconds to the validation MSE of the original after {row['n_epochs']} epochs, {row['n_layers']} "
                f"layers, bottleneck size {row['bottleneck_size']}, with {changes}",
                f"{speedup}: {ours:.4f} instead of {original:.4f}, means of {n_seeds} seeds, "
                f"reached with {sum(row['reached'])} of them",
                "6×",
                "12×",
            )
        )
    return rows


def quality_rows(result: dict[str, Any]) -> list[Row]:
    rows = []
    wanted = {2: ("−8 %", "−14 %"), 10: ("−25 %", "−40 %"), 32: ("−25 %", "−40 %")}
    for row in result["at_equal_epochs"]:
        size = row["bottleneck_size"]
        ours, theirs = row["ours_test_mse"], row["original_test_mse"]
        rows.append(
            (
                f"test MSE after {row['n_epochs']} epochs, {row['n_layers']} layers, bottleneck size {size}, "
                f"mean ± standard deviation of {len(ours['all'])} seeds",
                f"{ours['mean']:.4f} ± {ours['standard_deviation']:.4f} instead of {theirs['mean']:.4f} ± "
                f"{theirs['standard_deviation']:.4f}: {row['change_percent']:+.0f} %".replace("-", "−"),
                *wanted[size],
            )
        )
    row = result["precisions"]
    how = "" if result["precision"] == "bfloat16" else ", products rounded as by bfloat16 instructions"
    rows.append(
        (
            f"test MSE in bfloat16 instead of float32, {row['n_epochs']} epochs, {row['n_layers']} layers, "
            f"bottleneck size {row['bottleneck_size']}, means of {len(row['bfloat16_test_mse']['all'])} seeds{how}",
            f"{row['bfloat16_test_mse']['mean']:.5f} instead of {row['float32_test_mse']['mean']:.5f}: "
            f"{row['change_percent']:+.1f} %".replace("-", "−"),
            "within 1 %",
            "",
        )
    )
    committed = result["committed_experiment"]
    values = committed["test_mse"]
    rows.append(
        (
            f"test MSE of the committed experiment, {committed['n_epochs']} epochs, {committed['n_layers']} layers, "
            f"bottleneck size {committed['bottleneck_size']}, mean ± standard deviation of {len(values['all'])} seeds",
            f"{values['mean']:.4f} ± {values['standard_deviation']:.4f}",
            "",
            "",
        )
    )
    return rows


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
    """What the parameters of the training make of the validation MSE, each changed alone."""
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
    """What a training's bytes depend on, beside what another seed makes of it."""
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
