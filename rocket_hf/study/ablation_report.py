"""Report of an ablation: report.md, report.json, table.csv and its plots."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rocket_hf.analysis.depth_report import CONSTANT
from rocket_hf.evaluation.identity import package_versions
from rocket_hf.evaluation.statistics import format_rate
from rocket_hf.files import write_csv, write_json, write_text
from rocket_hf.formatting import format_duration

from .ablation import Ablation
from .ablation_depth import read_depths, summarize_depths
from .ablation_plots import plot_all
from .ablation_results import BASELINES, read_variants, summarize_variants
from .small_policy import BATCH


def write_ablation_report(ablation: Ablation) -> None:
    variants = read_variants(ablation)
    depths = read_depths(ablation)
    results, depth = summarize_variants(variants), summarize_depths(depths)
    plots = plot_all(ablation.folder, variants, results, depths)
    about = describe_ablation(ablation)
    write_csv(ablation.folder / "table.csv", *table_rows(results, depth))
    write_json(ablation.folder / "report.json", {"about": about, "variants": results, "depth": depth})
    write_text(ablation.folder / "report.md", format_ablation_report(about, results, depth, plots))


def describe_ablation(ablation: Ablation) -> dict[str, Any]:
    results = ablation.phases.results
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "versions": package_versions(),
        "sizes": ablation.sizes | {"batch": BATCH, "seeds": len(ablation.seeds)},
        "tasks": ablation.data.tasks,
        "layers": ablation.data.pairs,
        "seconds": sum(ablation.phases.seconds.values()),
        "cpu_seconds": sum(result["cpu_seconds"] for result in results.values()),
        "remaining_phases": [phase.name for phase in ablation.remaining_phases()],
    }


def describe_machine() -> str:
    """Return the number of cores and the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {models[0] if models else platform.processor() or platform.machine()}"


def table_rows(results: dict[str, Any], depth: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Return the header and one row per variant with all numbers of the report."""
    counts = ("successes", "rollouts", "rate", "low", "high")
    means = ("action_loss", "alignment_loss", "agreement_between_pairs", "conflicting_pairs", "agreement_with_action")
    header = ["variant", *counts]
    for other in BASELINES:
        header += [f"difference_to_{other}", f"low_of_difference_to_{other}", f"high_of_difference_to_{other}",
                   f"p_value_to_{other}"]  # fmt: skip
    header += [*means, "depth_error", "seconds_per_step", "peak_memory_bytes"]
    rows = []
    for name, values in results.items():
        row = [name, values["successes"], values["rollouts"], values["rate"], *values["interval"]]
        for other in BASELINES:
            test = values["against"].get(other)
            row += [test["difference"], *test["interval"], test["p_value"]] if test else [""] * 4
        row += [values[key]["mean"] if values[key] else "" for key in means]
        row.append(depth[name]["error"]["mean"] if name in depth else "")
        rows.append([*row, values["seconds_per_step"], values["peak_memory_bytes"]])
    return header, rows


def format_ablation_report(
    about: dict[str, Any], results: dict[str, Any], depth: dict[str, Any], plots: list[str]
) -> str:
    return "\n".join(
        [
            "# Comparison of alignment variants",
            "",
            *about_lines(about),
            "",
            *success_table(results),
            "",
            *comparison_lines(results),
            "",
            *training_table(results),
            "",
            *(depth_table(depth) if depth else []),
            *task_table(results),
            "",
            *(f"![{name}]({name}.png)" for name in plots),
            "",
        ]
    )


def about_lines(about: dict[str, Any]) -> list[str]:
    sizes, layers = about["sizes"], about["layers"]
    pairs = ", ".join(f"{s}-{t}" for s, t in zip(layers["student"], layers["teacher"], strict=True))
    lines = [
        f"- {about['date']}, {about['machine']}; {about['cpu_seconds'] / 3600:.2f} CPU hours, "
        f"{format_duration(about['seconds'])} of wall-clock time",
        f"- {sizes['seeds']} seeds; for each seed, all variants start from the same untrained policy and are trained "
        f"on the same samples: {sizes['steps']} steps with a batch size of {sizes['batch']}",
        f"- rollouts: {sizes['rollouts']} held-out episodes per task, the same for all variants; tasks: "
        f"{', '.join(about['tasks'])}",
        f"- layer pairs (policy-teacher): {pairs}; recipes with one pair use the last",
        f"- versions: {', '.join(f'{name} {version}' for name, version in about['versions'].items())}",
    ]
    remaining = about["remaining_phases"]
    if remaining:
        lines.append(f"- incomplete: {len(remaining)} remaining phases, the next is {remaining[0]}")
    return lines


def success_table(results: dict[str, Any]) -> list[str]:
    tested = [other for other in BASELINES if other in results]
    titles = ["variant", "success rate", "by seed, %", *(f"difference to {other}" for other in tested)]
    lines = ["## Success rate on held-out episodes", "", table_row(titles), table_row(["---"] * len(titles))]
    for name, values in results.items():
        seeds = ", ".join(f"{100 * count / rollouts:.0f}" for count, rollouts in values["by_seed"].values())
        tests = [format_test(values["against"].get(other)) for other in tested]
        lines.append(table_row([name, format_rate(values["successes"], values["rollouts"]), seeds, *tests]))
    return [
        *lines,
        "",
        "Brackets: 95 % intervals, Wilson's for rates in percent and Newcombe's for differences of paired rates in "
        "percentage points; p values of McNemar's exact test. They treat rollouts as independent; the third column "
        "shows how much training runs with different seeds vary.",
    ]


def table_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def format_test(test: dict[str, Any] | None) -> str:
    if test is None:
        return "-"
    low, high = (100 * end for end in test["interval"])
    return f"{100 * test['difference']:+.1f} ({low:+.1f} to {high:+.1f}), p = {test['p_value']:.2g}"


def comparison_lines(results: dict[str, Any]) -> list[str]:
    """Return one sentence per comparison. The comparison between the two baselines is included only once."""
    tests = [test for name, values in results.items() if name != BASELINES[0] for test in values["against"].values()]
    return [f"- {test['sentence']}" for test in tests]


def training_table(results: dict[str, Any]) -> list[str]:
    memory = next(iter(results.values()))["memory"]
    titles = ["variant", "action loss", "alignment loss", "agreement between pairs", "conflicting pairs",
              "agreement with action loss", "ms per step", f"peak MiB, {memory}"]  # fmt: skip
    lines = ["## Training", "", table_row(titles), table_row(["---"] * len(titles))]
    for name, values in results.items():
        means = [format_mean(values[key]) for key in ("action_loss", "alignment_loss", "agreement_between_pairs")]
        means += [format_mean(values["conflicting_pairs"], percent=True), format_mean(values["agreement_with_action"])]
        cost = [f"{1000 * values['seconds_per_step']:.0f}", f"{values['peak_memory_bytes'] / 2**20:.0f}"]
        lines.append(table_row([name, *means, *cost]))
    return [
        *lines,
        "",
        "Losses: mean over the last tenth of the steps and over seeds; the alignment loss is 1 - cosine, averaged over "
        "a variant's layer pairs. Agreement: mean cosine of gradients at the first aligned block over the whole run. "
        "Time: median step without the measurement of agreement. Memory: peak of the largest training process.",
    ]


def format_mean(value: dict[str, Any] | None, percent: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value['mean']:.0f} %" if percent else f"{value['mean']:.3f}"


def depth_table(depth: dict[str, Any]) -> list[str]:
    others = list(dict.fromkeys(other for values in reversed(depth.values()) for other in values["against"]))
    titles = ["model", "relative error", "by seed, %", "layer", *(f"difference to {other}" for other in others)]
    lines = ["## Depth predicted from image tokens", "", table_row(titles), table_row(["---"] * len(titles))]
    for name, values in depth.items():
        seeds = ", ".join(f"{100 * error:.1f}" for error in values["error"]["by_seed"])
        layers = "-" if values["kind"] == CONSTANT else ", ".join(map(str, values["selected_layers"]))
        differences = [format_points(values["against"].get(other)) for other in others]
        lines.append(table_row([name, f"{100 * values['error']['mean']:.2f} %", seeds, layers, *differences]))
    return [
        *lines,
        "",
        "Relative error of the metric depth of image patches, predicted by ridge regression from the frozen policy, on "
        "episodes used neither in training nor for the regression, at the layer selected on validation episodes. "
        "Brackets: 95 % bootstrap intervals over episodes, in percentage points; negative differences are better.",
        "",
    ]


def format_points(difference: dict[str, float] | None) -> str:
    if difference is None:
        return "-"
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def task_table(results: dict[str, Any]) -> list[str]:
    tasks = list(next(iter(results.values()))["by_task"])
    lines = ["## Successes by task", "", table_row(["task", *results]), table_row(["---"] * (len(results) + 1))]
    for task in tasks:
        counts = [values["by_task"][task] for values in results.values()]
        lines.append(table_row([task, *(f"{successes} of {rollouts}" for successes, rollouts in counts)]))
    return lines


def format_ablation_summary(ablation: Ablation) -> str:
    """Return the summary that the command prints."""
    results = summarize_variants(read_variants(ablation))
    lines = [f"{name:16}{format_rate(values['successes'], values['rollouts'])}" for name, values in results.items()]
    return "\n".join([*lines, f"{'report':16}{ablation.folder / 'report.md'}, report.json and table.csv"])
