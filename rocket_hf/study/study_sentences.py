"""Sentence for the outcome of a primary comparison: the same rules for every outcome, whichever it is."""

import math

from .seed_statistics import seeds_for_power, standard_deviation
from .study_comparisons import differences_of, is_interaction, parse_comparison
from .study_file import Study
from .study_summary import ArmSummary, ComparisonSummary, SettingSummary


def outcome_sentence(study: Study, summary: SettingSummary) -> str | None:
    """Return what the primary comparison of a phase shows in a setting; None if no seed is complete."""
    name = study.phases[summary.phase].primary
    primary = summary.comparisons.get(name) if name is not None else None
    if primary is None:
        return None
    if len(primary.seeds) < 2:
        difference = f"{primary.name} is {primary.tests.mean:+.1f} points"
        return f"In {summary.setting}, {difference} with a single seed, which has no interval over seeds."
    if is_interaction(primary.name):
        return interaction_sentence(summary, primary)
    if primary.name == study.headroom:
        return headroom_sentence(study, primary)
    if primary.headroom is not None and primary.headroom < study.least_headroom:
        room = f"perfect 3D adds {primary.headroom:+.1f} points"
        return f"Nothing to gain in {summary.setting}: {room}; {describe(primary)}."
    if primary.is_stopped:
        return (
            f"Stopped at the interim look, because the mean of the first {len(primary.seeds)} seeds is not positive: "
            f"{describe(primary)}. This does not show that the arms are equivalent."
        )
    return resolved_sentence(study, summary, primary)


def resolved_sentence(study: Study, summary: SettingSummary, primary: ComparisonSummary) -> str:
    first, second = parse_comparison(primary.name)
    low, high = primary.tests.interval
    if low > 0:
        room = f" of a headroom of {primary.headroom:.1f}" if primary.headroom is not None else ""
        gain = f"In {summary.setting}, {first} gains {format_tests(primary)} against {second}{room}"
        controls = study.phases[summary.phase].controls
        return " ".join([f"{gain}.", *(control_sentence(summary, primary, control) for control in controls)])
    if high < 0:
        return f"In {summary.setting}, {first} lowers success: {describe(primary)}."
    if primary.is_equivalent:
        return equivalence_sentence(study, summary, primary)
    needed = seeds_for_power(primary.margin, standard_deviation(primary.tests.differences))
    return (
        f"Unresolved in {summary.setting}: {describe(primary)}; about {needed} seeds would be needed to detect "
        f"{primary.margin:g} points."
    )


def control_sentence(summary: SettingSummary, primary: ComparisonSummary, name: str) -> str:
    """Return whether a gain is due to the 3D content of the targets, given a control without it."""
    control = summary.comparisons.get(name)
    if control is None or len(control.seeds) < 2:
        return f"The control {name} has not been run."
    low, _ = excess_interval(primary, control)
    if low > 0:
        return f"It is the geometry: {name} is {format_tests(control)}."
    if control.tests.interval[0] > 0:
        return f"The gain is not 3D: {name} is {format_tests(control)}. The targets act as a regularizer."
    return f"Whether it is the geometry is open: {name} is {format_tests(control)}."


def excess_interval(primary: ComparisonSummary, control: ComparisonSummary) -> tuple[float, float]:
    """Return the interval of primary - control over their common seeds."""
    of_control = dict(zip(control.seeds, control.tests.differences, strict=True))
    differences = [
        difference - of_control[seed]
        for seed, difference in zip(primary.seeds, primary.tests.differences, strict=True)
        if seed in of_control
    ]
    return type(primary.tests)(tuple(differences)).interval if differences else (-math.inf, math.inf)


def equivalence_sentence(study: Study, summary: SettingSummary, primary: ComparisonSummary) -> str:
    first, second = parse_comparison(primary.name)
    low, high = primary.tests.interval_90
    text = (
        f"In {summary.setting}, {first} is within +-{primary.margin:g} points of {second} (90 % interval {low:+.1f} to "
        f"{high:+.1f} over {len(primary.seeds)} seeds)"
    )
    control = summary.comparisons.get(study.phases[summary.phase].input_control or "")
    if control is not None and control.tests.interval[0] > 0:
        text += f", although 3D at the input adds {control.tests.mean:.1f} points"
    return text + depth_clause(summary.arm(first), summary.arm(second)) + "."


def depth_clause(first: ArmSummary | None, second: ArmSummary | None) -> str:
    """Return a clause about the depth in the tokens if alignment has improved it."""
    errors = [arm.depth_error if arm is not None else None for arm in (first, second)]
    if errors[0] is None or errors[1] is None or errors[0] >= errors[1]:
        return ""
    return (
        f": depth is in the tokens (relative error {100 * errors[1]:.1f} % -> {100 * errors[0]:.1f} %) and the action "
        "does not use it"
    )


def headroom_sentence(study: Study, primary: ComparisonSummary) -> str:
    if primary.tests.mean < study.least_headroom:
        return f"Nothing to gain in {primary.setting}: {describe(primary)}."
    return f"In {primary.setting} there is something to gain: {describe(primary)}."


def interaction_sentence(summary: SettingSummary, primary: ComparisonSummary) -> str:
    effects = [describe(summary.comparisons[name]) for name in reversed(differences_of(primary.name))]
    low, high = primary.tests.interval
    if low > 0 or high < 0:
        conclusion = "so the second effect differs from the first"
    elif primary.is_equivalent:
        conclusion = f"so the effects are equal within +-{primary.margin:g} points"
    else:
        conclusion = "so it is unresolved whether the effects differ"
    difference = f"Their difference is {format_tests(primary)}"
    return f"In {summary.setting}, {effects[0]} and {effects[1]}. {difference}, {conclusion}."


def describe(comparison: ComparisonSummary) -> str:
    return f"{comparison.name} is {format_tests(comparison)}"


def format_tests(comparison: ComparisonSummary) -> str:
    """Return for example "+4.2 points (95 % interval -1.0 to +9.4 over 12 seeds)"."""
    low, high = comparison.tests.interval
    seeds = len(comparison.seeds)
    return f"{comparison.tests.mean:+.1f} points (95 % interval {low:+.1f} to {high:+.1f} over {seeds} seeds)"


def resolution_sentence(comparison: ComparisonSummary) -> str:
    if len(comparison.seeds) < 2:
        return "A single seed has no resolution: no difference is detectable."
    return (
        f"Differences below {comparison.tests.resolution:.1f} points are not detectable (80 % power, "
        f"{len(comparison.seeds)} seeds, standard deviation of {comparison.name} "
        f"{standard_deviation(comparison.tests.differences):.1f} points)."
    )
