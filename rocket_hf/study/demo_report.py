"""What the demo found, on one page: report.md for people, report.png to look at, report.json for programs."""

from pathlib import Path
from typing import Any

from rocket_hf.evaluation.statistics import wilson
from rocket_hf.files import write_json, write_text

from .curves import POLICIES, Curves, end_of, read_curves, start_of
from .demo_figure import draw


def success_of(found: dict[str, Any]) -> dict[str, list[int]]:
    overall = {
        "untrained": found["rollouts untrained"]["overall"],
        "none": found["rollouts"]["against"]["overall"],
        "rocket": found["rollouts"]["overall"],
    }
    return {name: [values["successes"], values["episodes"]] for name, values in overall.items()}


def write_report(folder: Path, found: dict[str, Any]) -> None:
    curves = {name: read_curves(folder / name) for name in ("none", "rocket")}
    told = facts(folder, found, curves)
    draw(folder / "report.png", told, curves, Path(found["film"]["video"]))
    write_text(folder / "report.md", as_markdown(told))
    write_json(folder / "report.json", told)


def facts(folder: Path, found: dict[str, Any], curves: dict[str, Curves]) -> dict[str, Any]:
    rollouts = found["rollouts"]
    return {
        "seconds": found["seconds"],
        "success": success_of(found),
        "intervals": {name: list(wilson(*counts)) for name, counts in success_of(found).items()},
        "tasks": {
            task: {
                "untrained": counted(found["rollouts untrained"]["tasks"][task]),
                "none": counted(rollouts["against"]["tasks"][task]),
                "rocket": counted(values),
            }
            for task, values in rollouts["tasks"].items()
        },
        "comparison": rollouts["comparison"]["sentence"],
        "losses": {name: ends(curve) for name, curve in curves.items()},
        "gradient_agreement": curves["rocket"].agreement,
        "agreement_with_action": curves["rocket"].with_action,
        "layers": found["pairs"],
        "dataset": found["simulate"] | {"folder": str(folder / "dataset")},
        "bytes": {
            "features": found["cache"]["bytes"],
            "weights": found["train rocket"]["bytes"],
            "published": found["publish"]["bytes"],
        },
        "published": found["publish"]["folder"],
        "loaded": found["load"],
        "film": found["film"],
    }


def counted(values: dict[str, Any]) -> list[int]:
    return [values["successes"], values["episodes"]]


def ends(curves: Curves) -> dict[str, list[float]]:
    """Each loss at the beginning and at the end, as means of a tenth of the steps."""
    named = {"action": curves.action} | {f"alignment {name}": curve for name, curve in curves.pairs.items()}
    return {name: [round(start_of(curve), 4), round(end_of(curve), 4)] for name, curve in named.items()}


def as_markdown(told: dict[str, Any]) -> str:
    return "\n".join(
        [
            "# The demo: four simulated tasks, a policy with and without ROCKET",
            "",
            "![losses, success rates, gradient agreement, one rollout](report.png)",
            "",
            *success_lines(told),
            "",
            told["comparison"],
            "",
            *loss_lines(told),
            "",
            *size_lines(told),
            "",
            *time_lines(told["seconds"]),
        ]
    )


def success_lines(told: dict[str, Any]) -> list[str]:
    lines = ["## Success on held-out starts", "", f"| task | {' | '.join(POLICIES)} |", "|---" * 4 + "|"]
    for task, counts in told["tasks"].items():
        lines.append(f"| {task} | {' | '.join('{} of {}'.format(*counts[name]) for name in POLICIES)} |")
    cells = [rate(told["success"][name], told["intervals"][name]) for name in POLICIES]
    return [*lines, f"| **all** | {' | '.join(cells)} |", "", "In brackets: Wilson's intervals, at 95 %."]


def rate(counts: list[int], interval: list[float]) -> str:
    low, high = (round(100 * end) for end in interval)
    return f"{counts[0]} of {counts[1]}: {100 * counts[0] / counts[1]:.0f} % ({low} to {high})"


def loss_lines(told: dict[str, Any]) -> list[str]:
    lines = ["## Losses, the first tenth of the steps and the last", "", "| | none | rocket |", "|---|---|---|"]
    for name in told["losses"]["rocket"]:
        cells = [arrow(values_of.get(name)) for values_of in (told["losses"]["none"], told["losses"]["rocket"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if told["gradient_agreement"]:
        (_, first), (step, last) = told["gradient_agreement"][0], told["gradient_agreement"][-1]
        lines += ["", f"The gradients of the layer pairs agree with a mean cosine of {first:.2f} at the beginning and "
                  f"{last:.2f} at step {step}."]  # fmt: skip
    return lines


def arrow(values: list[float] | None) -> str:
    return "-" if values is None else f"{values[0]:.3f} -> {values[1]:.3f}"


def size_lines(told: dict[str, Any]) -> list[str]:
    sizes, loaded = told["bytes"], told["loaded"]
    pairs = ", ".join(f"{s}-{t}" for s, t in zip(told["layers"]["student"], told["layers"]["teacher"], strict=True))
    return [
        "## What was made",
        "",
        f"- {told['dataset']['episodes']} demonstrations, {told['dataset']['frames']:,} frames: "
        f"`{told['dataset']['folder']}`",
        f"- the teacher's features of all frames, {sizes['features'] / 1e6:.1f} MB, for the layer pairs {pairs}",
        f"- a policy of {loaded['parameters']:,} parameters, {sizes['weights'] / 1e6:.2f} MB, published in "
        f"`{told['published']}` ({sizes['published'] / 1e6:.2f} MB with code, card and self-test)",
        "- loaded by `AutoModel.from_pretrained` in a process that cannot import this package: its actions are "
        f"{loaded['distance']:.4%} off those of the trained model",
    ]


def time_lines(seconds: dict[str, float]) -> list[str]:
    lines = ["## Time", "", "| phase | seconds |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in seconds.items()]
    return [*lines, f"| **all** | {sum(seconds.values()):.0f} |", ""]


def summary(folder: Path, found: dict[str, Any]) -> str:
    """For the terminal."""
    counts = success_of(found)
    rates = ", ".join(f"{name} {won} of {all_}" for name, (won, all_) in counts.items())
    rows = [
        ("success", rates),
        ("", found["rollouts"]["comparison"]["sentence"]),
        ("published", found["publish"]["folder"]),
        ("report", f"{folder / 'report.md'} and report.png, after {sum(found['seconds'].values()):.0f} s"),
    ]
    return "\n".join(f"{name:12}{text}" for name, text in rows)
