"""An ablation on one page: report.md for people, report.json and table.csv for programs, and its pictures."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rocket_hf.analysis.depth_report import CONSTANT
from rocket_hf.evaluation.identity import versions
from rocket_hf.evaluation.statistics import rate_with_interval
from rocket_hf.files import write_csv, write_json, write_text

from .ablation import Ablation, clock
from .ablation_depth import depth_facts, read_depths
from .ablation_figures import BASELINES, facts, variants_of
from .ablation_plots import draw_all
from .small_policy import BATCH


def write_report(ablation: Ablation) -> None:
    variants = variants_of(ablation)
    depths = read_depths(ablation)
    told, depth = facts(variants), depth_facts(depths)
    pictures = draw_all(ablation.folder, variants, told, depths)
    about = about_of(ablation)
    write_csv(ablation.folder / "table.csv", *table(told, depth))
    write_json(ablation.folder / "report.json", {"about": about, "variants": told, "depth": depth})
    write_text(ablation.folder / "report.md", as_markdown(about, told, depth, pictures))


def about_of(ablation: Ablation) -> dict[str, Any]:
    results = ablation.phases.results
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "sizes": ablation.sizes | {"batch": BATCH, "seeds": len(ablation.seeds)},
        "tasks": ablation.data.tasks,
        "layers": ablation.data.pairs,
        "seconds": sum(ablation.phases.seconds.values()),
        "cpu_seconds": sum(result["cpu_seconds"] for result in results.values()),
        "phases_left": [work.name for work in ablation.open()],
    }


def machine() -> str:
    """Processor and count of cores, as the system tells them."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {models[0] if models else platform.processor() or platform.machine()}"


def table(told: dict[str, Any], depth: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """A line a variant, all numbers of the report."""
    plain = ("successes", "rollouts", "rate", "low", "high")
    means = ("action_loss", "alignment_loss", "agreement_between_pairs", "conflicting_pairs", "agreement_with_action")
    header = ["variant", *plain]
    for other in BASELINES:
        header += [f"difference_to_{other}", f"low_of_difference_to_{other}", f"high_of_difference_to_{other}",
                   f"p_value_to_{other}"]  # fmt: skip
    header += [*means, "depth_error", "seconds_per_step", "peak_memory_bytes"]
    rows = []
    for name, values in told.items():
        row = [name, values["successes"], values["rollouts"], values["rate"], *values["interval"]]
        for other in BASELINES:
            found = values["against"].get(other)
            row += [found["difference"], *found["interval"], found["p_value"]] if found else [""] * 4
        row += [values[key]["mean"] if values[key] else "" for key in means]
        row.append(depth[name]["error"]["mean"] if name in depth else "")
        rows.append([*row, values["seconds_per_step"], values["peak_memory_bytes"]])
    return header, rows


def as_markdown(about: dict[str, Any], told: dict[str, Any], depth: dict[str, Any], pictures: list[str]) -> str:
    return "\n".join(
        [
            "# The variants of alignment side by side",
            "",
            *about_lines(about),
            "",
            *success_lines(told),
            "",
            *sentences(told),
            "",
            *training_lines(told),
            "",
            *(depth_lines(depth) if depth else []),
            *task_lines(told),
            "",
            *(f"![{name}]({name}.png)" for name in pictures),
            "",
        ]
    )


def about_lines(about: dict[str, Any]) -> list[str]:
    sizes, layers = about["sizes"], about["layers"]
    pairs = ", ".join(f"{s}-{t}" for s, t in zip(layers["student"], layers["teacher"], strict=True))
    lines = [
        f"- {about['date']}, {about['machine']}; {about['cpu_seconds'] / 3600:.2f} CPU hours, "
        f"{clock(about['seconds'])} on the clock",
        f"- each of {sizes['seeds']} seeds: {sizes['steps']} steps of {sizes['batch']} samples, from the same "
        "untrained policy and with the same samples for every variant",
        f"- rollouts: {sizes['rollouts']} held-out starts of each of {', '.join(about['tasks'])}, the same for all",
        f"- layer pairs (policy-teacher): {pairs}; a recipe of one pair has the last of them",
        f"- run with {', '.join(f'{name} {version}' for name, version in about['versions'].items())}",
    ]
    left = about["phases_left"]
    return lines + ([f"- not done yet: {len(left)} phases, among them {left[0]}"] if left else [])


def success_lines(told: dict[str, Any]) -> list[str]:
    tested = [other for other in BASELINES if other in told]
    titles = ["variant", "success", "of each seed", *(f"against {other}" for other in tested)]
    lines = ["## Success on held-out starts", "", row(titles), row(["---"] * len(titles))]
    for name, values in told.items():
        seeds = ", ".join(f"{100 * won / rollouts:.0f}" for won, rollouts in values["by_seed"].values())
        tests = [difference(values["against"].get(other)) for other in tested]
        lines.append(row([name, rate(values), seeds, *tests]))
    return [
        *lines,
        "",
        "In brackets 95 % intervals: Wilson's for rates in percent, Newcombe's for differences of paired rates in "
        "points; p by McNemar's exact test. They take rollouts for independent of each other; how far apart trainings "
        "with other seeds come out, the third column shows.",
    ]


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rate(values: dict[str, Any]) -> str:
    return rate_with_interval(values["successes"], values["rollouts"])


def difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = (100 * end for end in found["interval"])
    return f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f}), p = {found['p_value']:.2g}"


def sentences(told: dict[str, Any]) -> list[str]:
    """Of two baselines one is told."""
    tested = [found for name, values in told.items() if name != BASELINES[0] for found in values["against"].values()]
    return [f"- {found['sentence']}" for found in tested]


def training_lines(told: dict[str, Any]) -> list[str]:
    memory = next(iter(told.values()))["memory"]
    titles = ["variant", "action loss", "alignment loss", "agreement between pairs", "in conflict", "with the action",
              "ms a step", f"peak MiB, {memory}"]  # fmt: skip
    lines = ["## Training", "", row(titles), row(["---"] * len(titles))]
    for name, values in told.items():
        means = [shown(values["action_loss"]), shown(values["alignment_loss"])]
        means += [shown(values["agreement_between_pairs"]), shown(values["conflicting_pairs"], percent=True)]
        cost = [f"{1000 * values['seconds_per_step']:.0f}", f"{values['peak_memory_bytes'] / 2**20:.0f}"]
        lines.append(row([name, *means, shown(values["agreement_with_action"]), *cost]))
    return [
        *lines,
        "",
        "Losses: means of the last tenth of the steps and of the seeds; alignment is 1 - cosine, the mean of a "
        "variant's own layer pairs. Agreement: mean cosine of gradients at the first aligned block over a whole run. "
        "Steps: the median time, without measuring agreement. Memory: of the process of the largest training.",
    ]


def shown(value: dict[str, Any] | None, percent: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value['mean']:.0f} %" if percent else f"{value['mean']:.3f}"


def depth_lines(depth: dict[str, Any]) -> list[str]:
    held_against = list(dict.fromkeys(other for values in reversed(depth.values()) for other in values["against"]))
    titles = ["model", "relative error", "of each seed", "layer", *(f"against {other}" for other in held_against)]
    lines = ["## Depth read off image tokens", "", row(titles), row(["---"] * len(titles))]
    for name, values in depth.items():
        seeds = ", ".join(f"{100 * error:.1f}" for error in values["error"]["by_seed"])
        layers = "-" if values["kind"] == CONSTANT else ", ".join(map(str, values["chosen_layers"]))
        apart = [points(values["against"].get(other)) for other in held_against]
        lines.append(row([name, f"{100 * values['error']['mean']:.2f} %", seeds, layers, *apart]))
    return [
        *lines,
        "",
        "Metric depth of image patches by ridge regression from the frozen policy, on episodes that neither training "
        "nor probe have seen, at the layer that other episodes speak for. In brackets: what 95 % of resampled sets of "
        "episodes say of the difference, in points; below zero is better.",
        "",
    ]


def points(apart: dict[str, float] | None) -> str:
    if apart is None:
        return "-"
    mean, low, high = (100 * apart[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def task_lines(told: dict[str, Any]) -> list[str]:
    tasks = list(next(iter(told.values()))["by_task"])
    lines = ["## By task", "", row(["task", *told]), row(["---"] * (len(told) + 1))]
    for task in tasks:
        counts = [values["by_task"][task] for values in told.values()]
        lines.append(row([task, *(f"{won} of {rollouts}" for won, rollouts in counts)]))
    return lines


def summary(ablation: Ablation) -> str:
    """For the terminal."""
    told = facts(variants_of(ablation))
    lines = [f"{name:16}{rate(values)}" for name, values in told.items()]
    return "\n".join([*lines, f"{'report':16}{ablation.folder / 'report.md'}, report.json and table.csv"])
