"""Layers chosen by what a policy and a teacher do on data: from the command to a recipe that trains."""

import csv

import pytest
import torch
from accelerate import Accelerator

from rocket_hf.commands import main
from rocket_hf.layer_selection.by_measure import make_measure
from rocket_hf.layer_selection.layer_features import LayerFeatures, MeasurementConfig, measure_layers
from rocket_hf.training.recipe_files import read_recipe

from ..training.conftest import (  # noqa: F401  (fixtures)
    forget_processes,
    no_network,
    policies,
    run_training,
    settings,
    stored,
    teacher,
)

pytestmark = pytest.mark.needs_lerobot

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def first_process():
    forget_processes()
    yield
    forget_processes()


@pytest.fixture
def asked(policies, stored, teacher):  # noqa: F811
    return MeasurementConfig(str(policies("pi0")), str(stored), str(teacher), "camera", "float32", 16, 4, 0)


def test_the_layers_are_the_models_own(asked):
    features = LayerFeatures(asked, CPU)
    assert features.samples == 16 and len(features.loader) == 4
    raw = next(iter(features.loader))
    batch = next(iter(features))
    inputs, pictures, _ = features.preparation.student(raw)
    wanted = features.policy.policy(inputs, range(4)).taps  # with the actions, which the image tokens do not see
    for layer in range(4):
        torch.testing.assert_close(batch.student[layer], wanted[layer])
    source = features.sources.targets
    maps = source.registration(source.scene_features(pictures, None))
    assert sorted(batch.teacher) == [1, 2, 3, 4]
    for layer in batch.teacher:
        torch.testing.assert_close(batch.teacher[layer], maps[layer])


def test_two_processes_add_up_to_all_samples(asked):
    """Each rank's frames are the other half; with `similarity` nothing is drawn, so the sums are equal."""
    alone = make_measure("similarity", (3, 4), CPU, True, [1, 2], "largest")
    assert measure_layers(alone, asked, Accelerator(cpu=True)) == 16
    shared = make_measure("similarity", (3, 4), CPU, True, [1, 2], "largest")
    for rank in range(2):
        for batch in LayerFeatures(asked, CPU, rank, ranks=2):
            shared.add(batch)
    torch.testing.assert_close(shared.sums, alone.sums)


@pytest.mark.parametrize("strategy", ["cka", "mutual-knn", "similarity"])
def test_what_is_written_trains(strategy, policies, stored, teacher, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "layers"
    words = [str(policies("pi0")), str(stored), "--teacher", str(teacher), "--strategy", strategy, "--pairs", "2"]
    assert main(["layers", *words, "--samples", "16", "--batch-size", "4", "--workers", "0", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    recipe = read_recipe(str(out / "recipe.yaml"))
    chosen = recipe.alignment
    assert len(chosen.student_layers) == 2 and chosen.nesting == "increasing"
    assert f"--set alignment.student_layers={str(chosen.student_layers).replace(' ', '')}" in said
    assert said.count("student ") == (out / "recipe.yaml").read_text().count("# student ") == 2
    assert (out / "similarity.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.reader((out / "similarity.csv").open()))
    assert (len(rows), len(rows[0])) == ((2, 4) if strategy == "similarity" else (4, 5))
    outcome = run_training(
        "--recipe", out / "recipe.yaml", "--policy", policies("pi0"), "--dataset", stored, "--out", tmp_path / "run",
        *settings(run__steps=1, run__batch_size=4, data__workers=0, teacher__dtype="float32"),
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr


def test_a_teacher_made_of_the_students_layers_is_found(asked):
    """The path of the command, with a teacher that is the policy's own layers in another order."""
    features = LayerFeatures(asked, CPU)
    measure = make_measure("cka", (3, 3), CPU, False, [1], "largest")
    for batch in features:
        batch.teacher = {1: batch.student[3], 2: batch.student[1].flip(-1), 3: -batch.student[2]}
        measure.add(batch)
    assert {(pair.student, pair.teacher) for pair in measure.pairs(3)} == {(3, 1), (1, 2), (2, 3)}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--samples", "2"], "2 samples of "),
        (["--strategy", "similarity", "--windows", "9"], "a window of 9 blocks does not fit into 3 blocks"),
        (["--strategy", "similarity", "--change", "larger"], "did you mean 'largest'?"),
        (["--strategy", "similarity", "--windows", "2", "--pairs", "3"], "only 2 layers end a window"),
        (["--pairs", "5"], "5 pairs cannot be made of 3 student and 4 teacher layers"),
        (["--teacher", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(more, said, policies, stored, teacher, capsys):  # noqa: F811
    words = [str(policies("pi0")), str(stored), "--teacher", str(teacher), "--strategy", "cka", "--pairs", "2"]
    assert main(["layers", *words, "--batch-size", "4", "--workers", "0", *more]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and said in error
