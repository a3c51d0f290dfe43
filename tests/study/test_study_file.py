"""Study files: reading, mistakes, and the rule that a file is fixed before its runs."""

from pathlib import Path

import pytest
import yaml

from rocket_hf.commands import main
from rocket_hf.study.environment_options import combine_environments
from rocket_hf.study.study_comparisons import parse_comparison
from rocket_hf.study.study_file import quick_study, read_study
from rocket_hf.study.study_folder import open_study, start_study

from .studies import plan_of, study_values, write_study

ALIGNMENT = Path(__file__).parents[2] / "studies" / "alignment.yaml"


def test_seeds_are_read_as_a_range_or_a_list(tmp_path):
    study = read_study(write_study(tmp_path / "study.yaml"))
    assert study.seeds == list(range(100, 112))
    phases = study_values()["phases"]
    phases["P1"]["seeds"] = [3, 1]
    study = read_study(write_study(tmp_path / "study.yaml", phases=phases))
    assert (study.phases["P1"].seeds, study.phases["P3"].seeds) == ([3, 1], study.seeds)


def test_environment_combines_setting_variant_and_evaluation(tmp_path):
    evaluations = {"moved": {"environment": "camera=fixed(10,0,0)", "shift": 10}}
    study = read_study(write_study(tmp_path / "study.yaml", evaluations=evaluations))
    name = study.environment("S2", "ceiling", "moved")
    assert name == "metaworld:heights=0..0.12,camera=fixed(10,0,0),cameras=corner2,state=object"
    assert study.environment("S2", "none") == "metaworld:heights=0..0.12,cameras=corner2"


def test_later_options_replace_earlier_ones_of_the_same_kind():
    combined = combine_environments("metaworld:camera=random(20,10,0.1),heights=0..0.1", "camera=fixed(5,0,0)")
    assert combined == "metaworld:heights=0..0.1,camera=fixed(5,0,0)"
    assert combine_environments("metaworld", "", "") == "metaworld"


def test_comparisons_have_signs():
    assert parse_comparison("spatial-forcing - none") == {"spatial-forcing": 1, "none": -1}
    assert parse_comparison("(a - b) - (c - d)") == {"a": 1, "b": -1, "c": -1, "d": 1}


def changed(path: str, value: object) -> dict:
    """Return a study with another value at a dotted path."""
    values = study_values()
    *parents, last = path.split(".")
    table = values
    for parent in parents:
        table = table[parent]
    table[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("settings.S2.stepps", 3, "has no key settings.S2.stepps: did you mean 'steps'?"),
        ("settings.S2.steps", 0, "settings.S2.steps must be above 0, got 0"),
        ("settings.S2.patch_size", 13, "image_size 84 must be a multiple of patch_size 13"),
        ("settings.S2.tasks", [], "settings.S2.tasks is empty"),
        ("settings.S2.tasks", ["button-pres-v3"], "has no task 'button-pres-v3': did you mean 'button-press-v3'?"),
        ("settings.S2.tasks", ["pick-place-v3"], "heights cannot raise the objects of pick-place-v3"),
        ("settings.S2.environment", "metaworld:hights=0..1", "has no setting 'hights': did you mean 'heights'?"),
        ("variants.ceiling.environment", "state=objekt", "has no state 'objekt'|did you mean 'object'?"),
        ("variants.rocket.recipe", "rockett", "there is no recipe 'rockett': did you mean 'rocket'?"),
        ("variants.rocket.teacher", None, "the recipe rocket aligns with a teacher: set teacher"),
        ("variants.none.teacher", "embedded", "the recipe none has no alignment: remove teacher"),
        ("phases.P1.settings", ["S3"], "phases.P1: there is no setting 'S3': known: S2"),
        ("phases.P1.variants", ["none", "ceilling"], "there is no variant 'ceilling': did you mean 'ceiling'?"),
        ("phases.P3.primary", "rockett - none", "there is no variant 'rockett': did you mean 'rocket'?"),
        ("phases.P3.primary", "rocket-none", "with spaces around each minus, got 'rocket-none'"),
        ("phases.P3.primary", "none - none", "names a variant twice"),
        ("phases.P3.best_of", "P2", "there is no earlier phase 'P2': known: P1"),
        ("phases.P3.settings", ["S2"], "phases.P3 needs either settings or best_of"),
        ("phases.P3.evaluations", ["moved"], "there is no evaluation 'moved': known: nominal"),
        ("phases.P3.futility_after", 12, "must be at least 2 and less than its 12 seeds, got 12"),
        ("headroom", "ceil - none", "headroom, comparison 'ceil - none': there is no variant 'ceil'"),
        ("seeds", "111..100", "seeds must be a range such as 100..111 or a list"),
        ("seeds", [1, 1], "seeds must be a range such as 100..111 or a list"),
        ("starts", 0, "starts must be above 0, got 0"),
        ("phases", {}, "the study has no phases: add the key phases"),
        ("name", "../x", "the name '../x' is not usable in file names"),
    ],
)
def test_mistakes_in_a_study_file_are_one_sentence(path, value, message, tmp_path, capsys):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    assert main(["study", "run", str(file), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"rocket-hf study: {file}: ")
    assert any(part in line for part in message.split("|")), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["name: [", "just text", None])
def test_unreadable_study_file_is_one_sentence(text, tmp_path, capsys):
    file = tmp_path / "study.yaml"
    if text is not None:
        file.write_text(text)
    assert main(["study", "run", str(file), "--out", str(tmp_path / "out")]) == 2
    assert str(file) in capsys.readouterr().err


def test_unknown_phase_is_reported_with_the_nearest_name(tmp_path, capsys):
    file = write_study(tmp_path / "study.yaml")
    assert main(["study", "run", str(file), "--out", str(tmp_path / "out"), "--phases", "P11"]) == 2
    assert "--phases: there is no phase 'P11': did you mean 'P1'?" in capsys.readouterr().err


def test_changed_study_file_is_rejected_after_its_runs_began(tmp_path, capsys):
    file, out = write_study(tmp_path / "study.yaml"), tmp_path / "out"
    start_study(file, out, is_quick=False)
    start_study(file, out, is_quick=False)  # The same file resumes.
    write_study(file, margin=5)
    assert main(["study", "run", str(file), "--out", str(out)]) == 2
    expected = f"{file} has changed since the runs in {out} began: restore it from {out / 'study.yaml'}"
    assert expected in capsys.readouterr().err
    assert yaml.safe_load((out / "study.yaml").read_text()) == study_values()


def test_folder_of_another_study_is_rejected(tmp_path, capsys):
    out = tmp_path / "out"
    start_study(write_study(tmp_path / "study.yaml"), out, is_quick=False)
    other = write_study(tmp_path / "other.yaml", name="other")
    assert main(["study", "run", str(other), "--out", str(out)]) == 2
    assert f"{out} belongs to the study small, not other: choose another folder" in capsys.readouterr().err


def test_quick_and_complete_runs_have_different_folders(tmp_path, capsys):
    file, out = write_study(tmp_path / "study.yaml"), tmp_path / "out"
    start_study(file, out, is_quick=True)
    assert main(["study", "run", str(file), "--out", str(out)]) == 2
    assert f"{out} was started with --quick" in capsys.readouterr().err


def test_folder_with_other_files_is_rejected(tmp_path, capsys):
    file, out = write_study(tmp_path / "study.yaml"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    assert main(["study", "run", str(file), "--out", str(out)]) == 2
    assert f"{out} is not empty and contains no study" in capsys.readouterr().err
    assert main(["study", "report", str(out)]) == 2
    assert f"{out} contains no study: pass a folder written by" in capsys.readouterr().err


def test_changed_copy_of_the_study_is_rejected_by_the_report(tmp_path, capsys):
    out = tmp_path / "out"
    start_study(write_study(tmp_path / "study.yaml"), out, is_quick=False)
    write_study(out / "study.yaml", margin=5)
    with pytest.raises(ValueError, match="has changed since the runs began"):
        open_study(out)


def test_shipped_study_has_all_phases_and_its_quick_form_all_arms():
    study = read_study(ALIGNMENT)
    assert list(study.phases)[:4] == ["P0", "P1", "P2", "P2-moving"]
    assert {"P3", "P4", "P5", "P6-demonstrations", "P6-steps"} <= set(study.phases)
    assert study.seeds == list(range(100, 112))
    assert study.starts == 100
    quick = quick_study(study)
    for name, phase in study.phases.items():
        assert quick.phases[name].variants == phase.variants
        assert quick.phases[name].evaluations == phase.evaluations
        assert len(quick.phases[name].seeds) == 1


def test_settings_with_equal_data_share_recordings_and_other_sizes_do_not(tmp_path):
    values = study_values()
    setting = values["settings"]["S2"]
    settings = {"S2": setting, "long": setting | {"steps": 800}, "few": setting | {"episodes": 5}}
    phases = {"P1": {"settings": list(settings), "variants": ["none", "rocket"], "seeds": [100, 101]}}
    file = write_study(tmp_path / "study.yaml", settings=settings, phases=phases)
    units = [unit.name for unit in plan_of(start_study(file, tmp_path / "out", is_quick=False)).units(["P1"])]
    assert [name for name in units if name.startswith("record/")] == ["record/S2", "record/few"]
    assert [name for name in units if name.startswith("cache/")] == ["cache/S2/embedded", "cache/few/embedded"]
    assert len([name for name in units if name.startswith("untrained/")]) == 2 * 2  # recordings x seeds
    assert len([name for name in units if name.startswith("train/")]) == 3 * 2 * 2


def test_depth_is_probed_only_for_variants_whose_images_all_have_depth(tmp_path):
    variants = {"none": {}, "map": {"environment": "inputs=xyz"}}
    phases = {"P1": {"settings": ["S2"], "variants": ["none", "map"], "seeds": [100], "depth": True}}
    file = write_study(tmp_path / "study.yaml", variants=variants, phases=phases, headroom=None)
    units = [unit.name for unit in plan_of(start_study(file, tmp_path / "out", is_quick=False)).units(["P1"])]
    assert [name for name in units if name.startswith("probe/")] == ["probe/S2/none/seed-100"]
