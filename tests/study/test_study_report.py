"""Plans, statistics, sentences and figures of a study, from synthetic results with known effects."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rocket_hf.commands import main
from rocket_hf.study.seed_statistics import SeedComparison
from rocket_hf.study.study_folder import StudyFolder
from rocket_hf.study.study_report import summarize, write_study_report
from rocket_hf.study.study_sentences import outcome_sentence

from .studies import PAIRS, complete_phase, new_folder, noise, plan_of, study_values

SEEDS = list(range(100, 112))
CONTROLS = {
    "none": {},
    "rocket": {"recipe": "rocket", "teacher": "embedded", "set": PAIRS},
    "map": {"environment": "inputs=xyz"},
    "shuffled": {"recipe": "rocket", "teacher": "embedded", "set": PAIRS | {"teacher.targets": "shuffled"}},
}


def one_phase(tmp_path, variants=("none", "rocket"), headroom=None, **phase):
    values = {"question": "?", "settings": ["S2"], "variants": list(variants), "primary": "rocket - none"} | phase
    return new_folder(tmp_path, variants=CONTROLS, headroom=headroom, phases={"P": values}, starts=1000)


def sentence(folder: StudyFolder) -> str:
    (phase,) = summarize(folder)
    text = outcome_sentence(folder.study, phase.settings[0])
    assert text is not None
    return text


def with_effects(folder: StudyFolder, rates: dict[str, float], deviation: float) -> StudyFolder:
    """Complete the phase; each variant has noise of its own over seeds."""
    spread = {variant: noise(SEEDS, deviation, number) for number, variant in enumerate(rates)}
    for seed in SEEDS:
        by_variant = {variant: rate + spread[variant][seed] for variant, rate in rates.items()}
        study = replace(folder.study, phases={"P": replace(folder.study.phases["P"], seeds=[seed])})
        single = StudyFolder(folder.path, folder.study, False)
        single.study = study
        complete_phase(single, "P", by_variant, {})
    return StudyFolder(folder.path, folder.study, False)


def test_comparison_is_that_of_the_differences_by_seed(tmp_path):
    folder = new_folder(tmp_path, seeds=[100, 101, 102])
    complete_phase(folder, "P1", {"none": 70, "ceiling": 90}, {101: 4, 102: -8})
    complete_phase(folder, "P3", {"none": 70, "rocket": 75}, {101: 4, 102: -8})
    first, second = summarize(folder)
    room, gain = first.settings[0].comparisons["ceiling - none"], second.settings[0].comparisons["rocket - none"]
    assert (room.tests.differences, room.headroom) == ((20.0, 20.0, 20.0), None)
    assert (gain.tests.differences, gain.headroom, gain.share) == ((5.0, 5.0, 5.0), 20.0, 0.25)
    arm = first.settings[0].arm("none")
    assert (arm.rates, arm.by_task) == ({100: 70.0, 101: 74.0, 102: 62.0}, {"button-press-topdown-v3": 206 / 3})


def test_phase_waits_for_the_setting_that_an_earlier_phase_chooses(tmp_path):
    values = study_values()
    setting = values["settings"]["S2"]
    values["phases"]["P1"]["settings"] = ["S2", "long"]
    folder = new_folder(tmp_path, settings={"S2": setting, "long": setting | {"steps": 800}}, phases=values["phases"])
    plan = plan_of(folder)
    assert (plan.settings("P3"), list(plan.arms("P3"))) == ([], [])
    for unit in plan.units(["P1"]):
        rate = {"S2/ceiling": 80, "long/ceiling": 95}.get("/".join(unit.name.split("/")[1:3]), 70)
        episodes = [["task", number, number < rate] for number in range(100)]
        folder.add_result(
            unit.name, {"seconds": 1, "cpu_seconds": 1, "commit": None, "command": "", "episodes": episodes}
        )
    assert plan_of(folder).settings("P3") == ["long"]
    assert "Not begun" not in report_text(folder)


def report_text(folder: StudyFolder) -> str:
    write_study_report(folder)
    return (folder.path / "report" / "report.md").read_text()


# Stop rule


def test_comparison_without_positive_mean_is_stopped_at_the_interim_look(tmp_path):
    folder = one_phase(tmp_path, futility_after=6)
    plan = plan_of(folder)
    assert {arm.seed for arm in plan.arms("P")} == set(SEEDS[:6])  # The others wait for the interim look.
    complete_phase(folder, "P", {"none": 70, "rocket": 69}, noise(SEEDS[:6], 3))
    assert plan_of(folder).is_complete("P")
    text = sentence(folder)
    assert text.startswith("Stopped at the interim look, because the mean of the first 6 seeds is not positive")
    assert "does not show that the arms are equivalent" in text
    (comparison,) = summarize(folder)[0].settings[0].comparisons.values()
    assert not comparison.is_equivalent  # although all differences are -1
    assert "| no (90 %:" in report_text(folder)


def test_comparison_with_positive_mean_continues_after_the_interim_look(tmp_path):
    folder = one_phase(tmp_path, futility_after=6)
    complete_phase(folder, "P", {"none": 70, "rocket": 71}, {})
    assert len(summarize(folder)[0].settings[0].comparisons["rocket - none"].seeds) == 12


def test_only_the_futile_arm_of_a_phase_is_stopped(tmp_path):
    folder = one_phase(tmp_path, ["none", "rocket", "shuffled"], futility_after=6, further=["shuffled - none"])
    complete_phase(folder, "P", {"none": 70, "rocket": 75, "shuffled": 70}, {})
    arms = {arm.variant: len(arm.rates) for arm in summarize(folder)[0].settings[0].arms}
    assert arms == {"none": 12, "rocket": 12, "shuffled": 6}


# Sentences, one for each outcome


def test_gain_with_headroom_and_control_without_gain_is_geometry(tmp_path):
    folder = one_phase(
        tmp_path, ["none", "rocket", "shuffled", "map"], controls=["shuffled - none"], headroom="map - none"
    )
    text = sentence(with_effects(folder, {"none": 60, "rocket": 80, "shuffled": 60, "map": 90}, 3))
    assert text.startswith("In S2, rocket gains +20.0 points (95 % interval +")
    assert "against none of a headroom of 30." in text
    assert "It is the geometry: shuffled - none is " in text


def test_gain_of_the_control_too_is_not_3d(tmp_path):
    folder = one_phase(tmp_path, ["none", "rocket", "shuffled"], controls=["shuffled - none"])
    text = sentence(with_effects(folder, {"none": 60, "rocket": 80, "shuffled": 80}, 3))
    assert "The gain is not 3D: shuffled - none is +" in text
    assert "act as a regularizer" in text


def test_equal_arms_are_equivalent_although_3d_at_the_input_helps(tmp_path):
    folder = one_phase(tmp_path, ["none", "rocket", "map"], input_control="map - none", depth=True)
    text = sentence(with_effects(folder, {"none": 70, "rocket": 70, "map": 85}, 3))
    assert text.startswith("In S2, rocket is within +-10 points of none (90 % interval -")
    assert "over 12 seeds), although 3D at the input adds 15." in text
    assert text.endswith(": depth is in the tokens (relative error 9.0 % -> 5.0 %) and the action does not use it.")


def test_wide_interval_is_unresolved_and_names_the_seeds_that_would_be_needed(tmp_path):
    text = sentence(with_effects(one_phase(tmp_path), {"none": 60, "rocket": 64}, 14))
    assert text.startswith("Unresolved in S2: rocket - none is +4.0 points (95 % interval -")
    assert "seeds would be needed to detect 10 points" in text


def test_loss_is_printed_like_a_gain(tmp_path):
    text = sentence(with_effects(one_phase(tmp_path), {"none": 80, "rocket": 60}, 3))
    assert text.startswith("In S2, rocket lowers success: rocket - none is -20.0 points (95 % interval -")


def test_setting_without_headroom_has_nothing_to_gain(tmp_path):
    folder = one_phase(tmp_path, ["none", "rocket", "map"], headroom="map - none")
    text = sentence(with_effects(folder, {"none": 90, "rocket": 91, "map": 95}, 1))
    assert text.startswith("Nothing to gain in S2: perfect 3D adds +5.0 points")


@pytest.mark.parametrize(("rate", "start"), [(96, "In S2 there is something to gain"), (75, "Nothing to gain in S2")])
def test_headroom_phase_states_what_there_is_to_gain(rate, start, tmp_path):
    folder = new_folder(tmp_path)
    complete_phase(folder, "P1", {"none": 70, "ceiling": rate}, noise(SEEDS, 4))
    text = outcome_sentence(folder.study, summarize(folder)[0].settings[0])
    assert text is not None and text.startswith(f"{start}: ceiling - none is +")


def test_interaction_gives_both_effects_and_their_difference(tmp_path):
    variants = CONTROLS | {"none-crops": {"set": {"data.augmentation.rotation": 5.0}}}
    variants["rocket-crops"] = variants["rocket"] | {"set": PAIRS | {"data.augmentation.rotation": 5.0}}
    phase = {"question": "?", "settings": ["S2"], "variants": ["none", "rocket", "none-crops", "rocket-crops"],
             "primary": "(rocket-crops - none-crops) - (rocket - none)"}  # fmt: skip
    folder = new_folder(tmp_path, variants=variants, headroom=None, phases={"P": phase}, starts=1000)
    rates = {"none": 60, "rocket": 40, "none-crops": 60, "rocket-crops": 65}
    text = sentence(with_effects(folder, rates, 3))
    assert text.startswith("In S2, rocket - none is -20.0 points (95 % interval")
    assert text.endswith(", so the second effect differs from the first.")
    assert "and rocket-crops - none-crops is +5.0 points (95 % interval" in text
    assert "Their difference is +25.0 points (95 % interval +" in text


def test_single_seed_makes_no_claim(tmp_path):
    folder = new_folder(tmp_path, seeds=[100])
    complete_phase(folder, "P1", {"none": 50, "ceiling": 90}, {})
    text = report_text(folder)
    assert "ceiling - none is +40.0 points with a single seed, which has no interval over seeds" in text
    assert "A single seed has no resolution" in text


# Simulated studies, through the plan and the report of a study


def simulated_study(folder: StudyFolder, number: int, effect: float) -> StudyFolder:
    """Return a study whose trainings and starts have luck, and in which `rocket` is better by `effect` points."""
    generator = np.random.default_rng(number)
    results = {}
    for variant, rate in (("none", 72.0), ("rocket", 72.0 + effect)):
        for seed in SEEDS:
            training = np.clip(rate + generator.normal(0, 9.5 / np.sqrt(2)), 0, 100)
            outcomes = (generator.random(100) < training / 100).tolist()
            episodes = [["task", start, success] for start, success in enumerate(outcomes)]
            results[f"evaluate/S2/{variant}/seed-{seed}/nominal"] = {"episodes": episodes}
    folder.results = results
    return folder


@pytest.mark.parametrize(("effect", "expected"), [(10.0, 0.83), (0.0, 0.05)])
def test_simulated_study_finds_a_true_effect_with_its_power_and_no_other(effect, expected, tmp_path):
    folder, found, studies = one_phase(tmp_path), 0, 200
    for number in range(studies):
        plan = plan_of(simulated_study(folder, number, effect))
        differences = plan.outcomes.differences("rocket - none", "S2", SEEDS, ["nominal"])
        found += SeedComparison(tuple(differences.values())).p < 0.05
    assert found / studies == pytest.approx(expected, abs=0.08 if effect else 0.04)


# Files


def test_report_covers_whatever_is_complete(tmp_path):
    folder = new_folder(tmp_path)
    text = report_text(folder)
    assert "## P1: What is there to gain?" in text
    assert "Not begun: its setting is chosen when phase P1 is complete." in text
    plan = plan_of(folder)
    for unit in plan.units(["P1"])[:5]:
        folder.add_result(unit.name, {"seconds": 1, "cpu_seconds": 3600, "commit": "c" * 40, "command": unit.command,
                                      "episodes": [["task", 1, True]]})  # fmt: skip
    text = report_text(folder)
    assert (
        "5 of 74 units are complete; 5.00 CPU hours; commit cccccccccccc; seeds 100 to 111; 100 held-out starts" in text
    )
    assert main(["study", "report", str(folder.path)]) == 0


def test_report_prints_table_resolution_and_command_of_each_unit(tmp_path):
    folder = with_effects(one_phase(tmp_path, depth=True), {"none": 70, "rocket": 70}, 5)
    text = report_text(folder)
    assert "| arm | success, mean over seeds | each seed | difference to none | share of headroom |" in text
    assert "Differences below " in text and "points are not detectable (80 % power, 12 seeds" in text
    assert "untrained 7.0%, constant 6.0%" in text
    commands = (folder.path / "report" / "commands.sh").read_text().splitlines()
    assert len(commands) == len(folder.results)
    assert all(command.startswith("OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 rocket-hf ") for command in commands)
    assert (folder.path / "report" / "P-S2.png").read_bytes().startswith(b"\x89PNG")


def test_comparisons_are_written_as_valid_json(tmp_path, capsys):
    folder = new_folder(tmp_path, seeds=[100])
    complete_phase(folder, "P1", {"none": 50, "ceiling": 90}, {})
    assert main(["study", "report", str(folder.path), "--json", str(tmp_path / "results")]) == 0
    (path,) = (tmp_path / "results").iterdir()
    assert path.name == "small-P1.json"
    values = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (values["study"], values["commit"], values["cpu_hours"]) == ("small", "0" * 40, 0.13)
    (comparison,) = values["comparisons"]
    assert comparison["name"] == "S2: ceiling - none"
    assert (comparison["per_seed"], comparison["mean"], comparison["interval"]) == ([40.0], 40.0, [None, None])
    assert comparison["p"] == 1.0


def test_holm_adjusts_further_comparisons_only(tmp_path):
    folder = one_phase(tmp_path, ["none", "rocket", "shuffled", "map"], further=["shuffled - none", "map - none"])
    folder = with_effects(folder, {"none": 60, "rocket": 66, "shuffled": 64, "map": 67}, 6)
    comparisons = summarize(folder)[0].settings[0].comparisons
    assert comparisons["rocket - none"].holm_p is None
    plain = sorted(comparisons[name].tests.p for name in ("shuffled - none", "map - none"))
    adjusted = sorted(comparisons[name].holm_p for name in ("shuffled - none", "map - none"))
    assert adjusted == pytest.approx([min(1, 2 * plain[0]), max(min(1, 2 * plain[0]), plain[1])])


def test_figure_shows_success_against_the_shift_of_the_camera(tmp_path):
    evaluations = {
        f"camera-{angle}": {"environment": f"camera=fixed({angle},0,0)", "shift": angle} for angle in (5, 20)
    }
    phase = {"question": "?", "settings": ["S2"], "variants": ["none", "rocket"], "primary": "rocket - none",
             "evaluations": ["nominal", *evaluations], "measured_on": list(evaluations), "depth": True}  # fmt: skip
    folder = new_folder(tmp_path, evaluations=evaluations, phases={"P": phase}, variants=CONTROLS, headroom=None)
    folder = with_effects(folder, {"none": 60, "rocket": 66}, 6)
    assert "![P-S2-shift](P-S2-shift.png)" in report_text(folder)
    assert (folder.path / "report" / "P-S2-shift.png").read_bytes().startswith(b"\x89PNG")
    assert "| success in | nominal | camera-5 | camera-20 |" in report_text(folder)
