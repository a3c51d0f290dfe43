"""Report of the demo: report.md, report.png and report.json."""

from pathlib import Path
from typing import Any

from rocket_hf.evaluation.statistics import wilson_interval
from rocket_hf.files import write_json, write_text

from .curves import POLICIES, TrainingCurves, final_mean, initial_mean, read_curves
from .demo_figure import draw_figure


def count_successes(results: dict[str, Any]) -> dict[str, list[int]]:
    overall = {
        "untrained": results["rollouts untrained"]["overall"],
        "none": results["rollouts"]["against"]["overall"],
        "rocket": results["rollouts"]["overall"],
    }
    return {name: [values["successes"], values["episodes"]] for name, values in overall.items()}


def write_demo_report(folder: Path, results: dict[str, Any]) -> None:
    curves = {name: read_curves(folder / name) for name in ("none", "rocket")}
    facts = collect_facts(folder, results, curves)
    draw_figure(folder / "report.png", facts, curves, Path(results["video"]["video"]))
    write_text(folder / "report.md", format_demo_report(facts))
    write_json(folder / "report.json", facts)


def collect_facts(folder: Path, results: dict[str, Any], curves: dict[str, TrainingCurves]) -> dict[str, Any]:
    rollouts = results["rollouts"]
    return {
        "seconds": results["seconds"],
        "success": count_successes(results),
        "intervals": {name: list(wilson_interval(*counts)) for name, counts in count_successes(results).items()},
        "tasks": {
            task: {
                "untrained": success_counts(results["rollouts untrained"]["tasks"][task]),
                "none": success_counts(rollouts["against"]["tasks"][task]),
                "rocket": success_counts(values),
            }
            for task, values in rollouts["tasks"].items()
        },
        "comparison": rollouts["comparison"]["sentence"],
        "losses": {name: initial_and_final(curve) for name, curve in curves.items()},
        "gradient_agreement": curves["rocket"].agreement,
        "agreement_with_action": curves["rocket"].with_action,
        "layers": results["pairs"],
        "dataset": results["simulate"] | {"folder": str(folder / "dataset")},
        "bytes": {
            "features": results["cache"]["bytes"],
            "weights": results["train rocket"]["bytes"],
            "published": results["publish"]["bytes"],
        },
        "published": results["publish"]["folder"],
        "loaded": results["load"],
        "video": results["video"],
    }


def success_counts(values: dict[str, Any]) -> list[int]:
    return [values["successes"], values["episodes"]]


def initial_and_final(curves: TrainingCurves) -> dict[str, list[float]]:
    """Return the mean of each loss over the first and over the last tenth of the steps."""
    by_name = {"action": curves.action} | {f"alignment {name}": curve for name, curve in curves.pairs.items()}
    return {name: [round(initial_mean(curve), 4), round(final_mean(curve), 4)] for name, curve in by_name.items()}


def format_demo_report(facts: dict[str, Any]) -> str:
    return "\n".join(
        [
            "# Demo: four simulated tasks, a policy with and without ROCKET",
            "",
            "![losses, success rates, gradient agreement, one rollout](report.png)",
            "",
            *success_lines(facts),
            "",
            facts["comparison"],
            "",
            *loss_lines(facts),
            "",
            *size_lines(facts),
            "",
            *time_lines(facts["seconds"]),
        ]
    )


def success_lines(facts: dict[str, Any]) -> list[str]:
    lines = ["## Successes on held-out episodes", "", f"| task | {' | '.join(POLICIES)} |", "|---" * 4 + "|"]
    for task, counts in facts["tasks"].items():
        lines.append(f"| {task} | {' | '.join('{} of {}'.format(*counts[name]) for name in POLICIES)} |")
    cells = [format_success(facts["success"][name], facts["intervals"][name]) for name in POLICIES]
    return [*lines, f"| **all** | {' | '.join(cells)} |", "", "Brackets: Wilson's 95 % intervals."]


def format_success(counts: list[int], interval: list[float]) -> str:
    low, high = (round(100 * end) for end in interval)
    return f"{counts[0]} of {counts[1]}: {100 * counts[0] / counts[1]:.0f} % ({low} to {high})"


def loss_lines(facts: dict[str, Any]) -> list[str]:
    title = "## Losses, mean of the first and of the last tenth of the steps"
    lines = [title, "", "| | none | rocket |", "|---|---|---|"]
    for name in facts["losses"]["rocket"]:
        cells = [format_change(facts["losses"][policy].get(name)) for policy in ("none", "rocket")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if facts["gradient_agreement"]:
        (_, first), (step, last) = facts["gradient_agreement"][0], facts["gradient_agreement"][-1]
        lines += ["", f"The mean cosine between the gradients of layer pairs was {first:.2f} at the beginning and "
                  f"{last:.2f} at step {step}."]  # fmt: skip
    return lines


def format_change(values: list[float] | None) -> str:
    return "-" if values is None else f"{values[0]:.3f} -> {values[1]:.3f}"


def size_lines(facts: dict[str, Any]) -> list[str]:
    sizes, loaded = facts["bytes"], facts["loaded"]
    pairs = ", ".join(f"{s}-{t}" for s, t in zip(facts["layers"]["student"], facts["layers"]["teacher"], strict=True))
    return [
        "## Files",
        "",
        f"- {facts['dataset']['episodes']} demonstrations, {facts['dataset']['frames']:,} frames: "
        f"`{facts['dataset']['folder']}`",
        f"- the teacher's features of all frames, {sizes['features'] / 1e6:.1f} MB, for the layer pairs {pairs}",
        f"- a policy of {loaded['parameters']:,} parameters, {sizes['weights'] / 1e6:.2f} MB, published in "
        f"`{facts['published']}` ({sizes['published'] / 1e6:.2f} MB with code, card and self-test)",
        "- the published policy, loaded by `AutoModel.from_pretrained` in a process that cannot import this package, "
        f"predicts actions that differ from the trained model's by {loaded['distance']:.4%}",
    ]


def time_lines(seconds: dict[str, float]) -> list[str]:
    lines = ["## Durations", "", "| phase | seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in seconds.items()]
    return [*lines, f"| **all** | {sum(seconds.values()):.0f} |", ""]


def format_demo_summary(folder: Path, results: dict[str, Any]) -> str:
    """Return the summary that the command prints."""
    counts = count_successes(results)
    rates = ", ".join(f"{name} {successes} of {episodes}" for name, (successes, episodes) in counts.items())
    rows = [
        ("success", rates),
        ("", results["rollouts"]["comparison"]["sentence"]),
        ("published", results["publish"]["folder"]),
        ("report", f"{folder / 'report.md'} and report.png, after {sum(results['seconds'].values()):.0f} s"),
    ]
    return "\n".join(f"{name:12}{text}" for name, text in rows)
