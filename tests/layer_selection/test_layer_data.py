"""Layer selection on data, from the command to a recipe that trains."""

import csv

import pytest
import torch
from accelerate import Accelerator

from rocket_hf.commands import main
from rocket_hf.layer_selection.by_measure import build_measure
from rocket_hf.layer_selection.layer_features import LayerFeatureLoader, MeasurementConfig, measure_layers
from rocket_hf.training.recipe_files import read_recipe

from ..training.conftest import (  # noqa: F401  (fixtures)
    image_dataset,
    no_network,
    policies,
    reset_accelerate_state,
    run_training,
    set_options,
    teacher,
)

pytestmark = pytest.mark.needs_lerobot

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def first_process():
    reset_accelerate_state()
    yield
    reset_accelerate_state()


@pytest.fixture
def config(policies, image_dataset, teacher):  # noqa: F811
    return MeasurementConfig(str(policies("pi0")), str(image_dataset), str(teacher), "camera", "float32", 16, 4, 0)


def test_extracted_layers_equal_those_of_the_models(config):
    features = LayerFeatureLoader(config, CPU)
    assert features.samples == 16 and len(features.loader) == 4
    raw = next(iter(features.loader))
    batch = next(iter(features))
    inputs, images, _ = features.model_inputs.inputs(raw)
    expected = features.policy.policy(inputs, range(4)).taps  # with actions, which image tokens do not attend to
    for layer in range(4):
        torch.testing.assert_close(batch.student[layer], expected[layer])
    source = features.resources.targets
    maps = source.registration(source.scene_features(images, None))
    assert sorted(batch.teacher) == [1, 2, 3, 4]
    for layer in batch.teacher:
        torch.testing.assert_close(batch.teacher[layer], maps[layer])


def test_two_processes_add_up_to_all_samples(config):
    """Each rank has half of the frames. `similarity` draws nothing at random, so the sums must be equal."""
    alone = build_measure("similarity", (3, 4), CPU, True, [1, 2], "largest")
    assert measure_layers(alone, config, Accelerator(cpu=True)) == 16
    shared = build_measure("similarity", (3, 4), CPU, True, [1, 2], "largest")
    for rank in range(2):
        for batch in LayerFeatureLoader(config, CPU, rank, ranks=2):
            shared.add(batch)
    torch.testing.assert_close(shared.sums, alone.sums)


@pytest.mark.parametrize("strategy", ["cka", "mutual-knn", "similarity"])
def test_written_recipe_trains(strategy, policies, image_dataset, teacher, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "layers"
    words = [
        str(policies("pi0")),
        str(image_dataset),
        "--teacher",
        str(teacher),
        "--strategy",
        strategy,
        "--pairs",
        "2",
    ]
    assert main(["layers", *words, "--samples", "16", "--batch-size", "4", "--workers", "0", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    recipe = read_recipe(str(out / "recipe.yaml"))
    chosen = recipe.alignment
    assert len(chosen.student_layers) == 2 and chosen.nesting == "increasing"
    assert f"--set alignment.student_layers={str(chosen.student_layers).replace(' ', '')}" in output
    assert output.count("student ") == (out / "recipe.yaml").read_text().count("# student ") == 2
    assert (out / "similarity.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.reader((out / "similarity.csv").open()))
    assert (len(rows), len(rows[0])) == ((2, 4) if strategy == "similarity" else (4, 5))
    outcome = run_training(
        "--recipe", out / "recipe.yaml", "--policy", policies("pi0"), "--dataset", image_dataset,
        "--out", tmp_path / "run",
        *set_options(run__steps=1, run__batch_size=4, data__workers=0, teacher__dtype="float32"),
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr


def test_teacher_made_of_permuted_student_layers_is_matched(config):
    features = LayerFeatureLoader(config, CPU)
    measure = build_measure("cka", (3, 3), CPU, False, [1], "largest")
    for batch in features:
        batch.teacher = {1: batch.student[3], 2: batch.student[1].flip(-1), 3: -batch.student[2]}
        measure.add(batch)
    assert {(pair.student, pair.teacher) for pair in measure.pairs(3)} == {(3, 1), (1, 2), (2, 3)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "2"], "2 samples of "),
        (["--strategy", "similarity", "--windows", "9"], "a window of 9 blocks does not fit into 3 blocks"),
        (["--strategy", "similarity", "--change", "larger"], "did you mean 'largest'?"),
        (["--strategy", "similarity", "--windows", "2", "--pairs", "3"], "a window ends at only 2 layers"),
        (["--pairs", "5"], "5 pairs are not possible with 3 student and 4 teacher layers"),
        (["--teacher", "nowhere"], "nowhere"),
    ],
)
def test_invalid_input_is_reported_in_one_sentence(options, message, policies, image_dataset, teacher, capsys):  # noqa: F811
    words = [str(policies("pi0")), str(image_dataset), "--teacher", str(teacher), "--strategy", "cka", "--pairs", "2"]
    assert main(["layers", *words, "--batch-size", "4", "--workers", "0", *options]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and message in error
