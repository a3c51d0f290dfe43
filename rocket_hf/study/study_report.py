"""Report of a study: report.md, report.json and figures, from whatever is complete."""

from pathlib import Path
from typing import Any

from rocket_hf.files import create_folder, write_json, write_text

from .study_comparisons import is_interaction
from .study_figures import draw_figures
from .study_file import Study
from .study_folder import StudyFolder
from .study_plan import StudyPlan
from .study_sentences import format_tests, outcome_sentence, resolution_sentence
from .study_summary import (
    ArmSummary,
    ComparisonSummary,
    PhaseSummary,
    SettingSummary,
    StudySummarizer,
    finite,
    reference_variant,
)
from .study_units import UnitPlanner

SETTING_SIZES = ("steps", "image_size", "patch_size", "vision_depth")


def plan_of(folder: StudyFolder) -> StudyPlan:
    return StudyPlan(folder.study, UnitPlanner(folder.study, folder.path), folder.results)


def summarize(folder: StudyFolder) -> list[PhaseSummary]:
    return StudySummarizer(folder, plan_of(folder)).phases()


def completed_commands(folder: StudyFolder) -> list[str]:
    """Return the commands of all completed units, each after those that it needs."""
    units = plan_of(folder).units(list(folder.study.phases))
    return [folder.results[unit.name]["command"] for unit in units if unit.name in folder.results]


def write_study_report(folder: StudyFolder) -> str:
    """Write the report, and return the sentences of its outcomes for the console."""
    out, phases = folder.path / "report", summarize(folder)
    create_folder(out)
    figures = draw_figures(out, folder.study, phases)
    write_json(out / "report.json", {phase.name: phase_values(folder, phase) for phase in phases})
    write_text(out / "commands.sh", "".join(f"{command}\n" for command in completed_commands(folder)))
    lines = [f"# Study: {folder.study.name}", "", folder.study.question.strip(), ""]
    if folder.is_quick:
        lines += ["This is a quick run with the smallest sizes and a single seed. Its numbers mean nothing.", ""]
    for phase in phases:
        lines += phase_lines(folder.study, phase, figures)
    lines += ["`commands.sh` contains the commands of all completed units, which reproduce them exactly.", ""]
    write_text(out / "report.md", "\n".join(lines))
    outcomes = [line for phase in phases for line in outcome_lines(folder.study, phase)]
    return "\n".join([*outcomes, f"report written to {out}"])


def write_comparisons(folder: StudyFolder, out: Path) -> list[Path]:
    """Write the comparisons of each phase that has any to NAME-PHASE.json; return the paths."""
    create_folder(out)
    paths = []
    for phase in summarize(folder):
        values = phase_values(folder, phase)
        if values["comparisons"]:
            paths.append(out / f"{folder.study.name}-{phase.name}.json")
            write_json(paths[-1], values)
    return paths


def phase_values(folder: StudyFolder, phase: PhaseSummary) -> dict[str, Any]:
    return {
        "study": folder.study.name,
        "phase": phase.name,
        "commit": ", ".join(phase.commits) or None,
        "cpu_hours": round(phase.cpu_hours, 2),
        "quick": folder.is_quick,
        "starts": folder.study.starts,
        "complete": phase.completed == phase.units > 0,
        "comparisons": [
            comparison.as_dict() for setting in phase.settings for comparison in setting.comparisons.values()
        ],
        "arms": [arm_values(setting, arm) for setting in phase.settings for arm in setting.arms],
    }


def arm_values(setting: SettingSummary, arm: ArmSummary) -> dict[str, Any]:
    return {
        "setting": setting.setting,
        "variant": arm.variant,
        "per_seed": arm.rates,
        "mean": arm.mean,
        "interval": finite(arm.interval),
        "interquartile_mean": arm.interquartile_mean,
        "by_evaluation": arm.by_evaluation,
        "by_task": arm.by_task,
        "depth_errors": {f"{kind}depth_error": error for kind, error in arm.depth_errors.items()},
        "alignment_loss": arm.alignment_loss,
        "cpu_minutes": arm.cpu_minutes,
    }


# Markdown


def phase_lines(study: Study, phase: PhaseSummary, figures: dict[str, list[str]]) -> list[str]:
    values = study.phases[phase.name]
    lines = [f"## {phase.name}: {values.question.strip()}", ""]
    if not phase.units:
        return [*lines, f"Not begun: its setting is chosen when phase {values.best_of} is complete.", ""]
    if not phase.settings:
        return [*lines, f"{phase.completed} of {phase.units} units are complete; no arm has been evaluated yet.", ""]
    commits = ", ".join(commit[:12] for commit in phase.commits) or "unknown"
    lines += [
        f"{phase.completed} of {phase.units} units are complete; {phase.cpu_hours:.2f} CPU hours; commit {commits}; "
        f"seeds {seed_range(values.seeds)}; {study.starts} held-out starts per policy, the same for all arms; success "
        f"in {', '.join(values.measured_on)}.",
        "",
    ]
    if values.best_of is not None:
        lines += [f"The setting is the best of phase {values.best_of}: {phase.settings[0].setting}.", ""]
    for setting in phase.settings:
        lines += setting_lines(study, setting)
    return lines + [line for name in figures.get(phase.name, []) for line in (f"![{name}]({name}.png)", "")]


def outcome_lines(study: Study, phase: PhaseSummary) -> list[str]:
    """Return the outcome of a phase in each setting, for the console."""
    sentences = [(setting.setting, outcome_sentence(study, setting)) for setting in phase.settings]
    return [f"{phase.name}: {sentence}" for _, sentence in sentences if sentence is not None]


def seed_range(seeds: list[int]) -> str:
    is_range = seeds == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    return f"{seeds[0]} to {seeds[-1]}" if is_range else ", ".join(map(str, seeds))


def setting_lines(study: Study, summary: SettingSummary) -> list[str]:
    values = study.settings[summary.setting]
    sizes = ", ".join(f"{name.replace('_', ' ')} {getattr(values, name)}" for name in SETTING_SIZES)
    tasks = ", ".join(study.tasks(summary.setting))
    lines = [
        f"### {summary.setting}: `{values.environment}`",
        "",
        f"{values.episodes} demonstrations per task of {tasks}; {sizes}.{expert_sentence(summary)}",
        "",
        *arm_table(study, summary),
        "",
    ]
    sentence = outcome_sentence(study, summary)
    primary = summary.comparisons.get(study.phases[summary.phase].primary or "")
    if sentence is not None and primary is not None:
        lines += [f"**{sentence}** {resolution_sentence(primary)}", ""]
    lines += depth_lines(summary)
    lines += comparison_table(summary)
    lines += evaluation_table(summary)
    return lines + task_table(summary)


def expert_sentence(summary: SettingSummary) -> str:
    if summary.expert is None:
        return ""
    failed, recorded = summary.expert
    return f" The experts failed in {failed} of {failed + recorded} attempts."


def arm_table(study: Study, summary: SettingSummary) -> list[str]:
    reference = reference_variant(study, summary.phase)
    difference = f"difference to {reference}" if reference is not None else "difference"
    titles = ["arm", "success, mean over seeds", "each seed", difference, "share of headroom", "depth error",
              "alignment loss", "CPU minutes"]  # fmt: skip
    rows = []
    for arm in summary.arms:
        comparison = summary.differences.get(arm.variant)
        share = comparison.share if comparison is not None else None
        rows.append([
            arm.variant,
            f"{arm.mean:.1f} %",
            ", ".join(f"{rate:.0f}" for rate in arm.rates.values()),
            format_difference(comparison),
            optional(share, "{:.0%}"),
            optional(arm.depth_error, "{:.1%}"),
            optional(arm.alignment_loss, "{:.3f}"),
            optional(arm.cpu_minutes, "{:.1f}"),
        ])  # fmt: skip
    return markdown_table(titles, rows)


def format_difference(comparison: ComparisonSummary | None) -> str:
    if comparison is None:
        return "-"
    low, high = comparison.tests.interval
    stopped = ", stopped" if comparison.is_stopped else ""
    if len(comparison.seeds) < 2:
        return f"{comparison.tests.mean:+.1f}{stopped}"
    return f"{comparison.tests.mean:+.1f} ({low:+.1f} to {high:+.1f}), p = {comparison.tests.p:.2g}{stopped}"


def depth_lines(summary: SettingSummary) -> list[str]:
    """Return the depth errors with which those of the arms are compared; all arms share them."""
    errors = {kind: error for arm in summary.arms for kind, error in arm.depth_errors.items() if kind}
    if not errors:
        return []
    texts = [f"{kind.rstrip('_')} {error:.1%}" for kind, error in errors.items()]
    return [f"Relative depth error on held-out frames, for comparison: {', '.join(texts)}.", ""]


def comparison_table(summary: SettingSummary) -> list[str]:
    if not summary.comparisons:
        return []
    titles = ["comparison", "difference", "p (t-test)", "p (sign flips)", "p (Holm)",
              "equivalent", "probability of improvement"]  # fmt: skip
    rows = []
    for comparison in summary.comparisons.values():
        tests, improvement = comparison.tests, comparison.improvement
        low, high = tests.interval_90
        equivalent = f"{'yes' if comparison.is_equivalent else 'no'} (90 %: {low:+.1f} to {high:+.1f})"
        probability = "-" if improvement is None else "{:.2f} ({:.2f} to {:.2f})".format(*improvement)
        rows.append([
            comparison.name + (", stopped" if comparison.is_stopped else ""), format_tests(comparison),
            f"{tests.p:.2g}", f"{tests.sign_flip_p:.2g}", optional(comparison.holm_p, "{:.2g}"), equivalent,
            "-" if is_interaction(comparison.name) else probability,
        ])  # fmt: skip
    margin = next(iter(summary.comparisons.values())).margin
    note = (
        "Unit: training seed. Differences in points of success with paired t intervals; equivalent: the 90 % interval "
        f"is within +-{margin:g} points; probability of improvement with a bootstrap over seeds, then starts."
    )
    return [*markdown_table(titles, rows), "", note, ""]


def evaluation_table(summary: SettingSummary) -> list[str]:
    """Return the success in each evaluation, if there are several."""
    evaluations = list(summary.arms[0].by_evaluation)
    if len(evaluations) < 2:
        return []
    rows = [
        [arm.variant, *(optional(mean(arm.by_evaluation[name]), "{:.1f} %") for name in evaluations)]
        for arm in summary.arms
    ]
    return [*markdown_table(["success in", *evaluations], rows), ""]


def task_table(summary: SettingSummary) -> list[str]:
    """Return the success in each task over all seeds, if there are several tasks."""
    tasks = list(summary.arms[0].by_task)
    if len(tasks) < 2:
        return []
    rows = [[arm.variant, *(f"{arm.by_task[task]:.1f} %" for task in tasks)] for arm in summary.arms]
    return [*markdown_table(["success in", *tasks], rows), ""]


def mean(rates: dict[int, float]) -> float | None:
    return sum(rates.values()) / len(rates) if rates else None


def optional(value: float | None, template: str) -> str:
    return "-" if value is None else template.format(value)


def markdown_table(titles: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]
