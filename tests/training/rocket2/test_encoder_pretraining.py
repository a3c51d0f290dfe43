"""Pretraining of the image encoder of a new ROCKET-2 policy."""

import json
import math
import re

import pytest
import torch

from rocket_hf.commands import main
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.sims.vizdoom.maps import make_room
from rocket_hf.sims.vizdoom.recording import record_rooms
from rocket_hf.training.recipe_files import read_rocket2_recipe
from rocket_hf.training.rocket2.dataset import RecordedRooms
from rocket_hf.training.rocket2.encoder_pretraining import (
    evaluate_encoder,
    initialize_for_pretraining,
    label_images,
    read_object_names,
    sinusoidal_positions,
    train_encoder,
)

pytestmark = pytest.mark.needs_lerobot


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms") / "three"
    record_rooms(folder, rooms=3, views=8, workers=1, first_seed=20)
    return folder


@pytest.fixture(scope="module")
def pretrained(rooms, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoders") / "encoder"
    assert main(["pretrain-encoder", str(rooms), "--steps", "60", "--out", str(out)]) == 0
    return out


def test_labels_name_the_objects_that_the_rooms_were_made_with(rooms):
    data = RecordedRooms([str(rooms)])
    data.load_images()
    names, name_of_object = read_object_names(data)
    kinds = {f"go to the {item.kind}" for seed in (20, 21, 22) for item in make_room(seed).objects}
    assert names == sorted(kinds)
    images = label_images(data, name_of_object, [21])
    objects = make_room(21).objects
    expected = {0} | {1 + names.index(f"go to the {item.kind}") for item in objects}
    assert set(images.labels.unique().tolist()) == expected
    frames = [row for episode in data.episodes if episode.room == 21 for row in episode.frames]
    assert ((images.labels > 0) == (data.objects[frames] > 0)).all()
    shares = images.patch_classes(torch.tensor([0]), 10, len(names))
    corner = torch.stack([(images.labels[0, :10, :10] == label).float().mean() for label in range(1 + len(names))])
    torch.testing.assert_close(shares[0, 0], corner)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(1, 48))


def test_encoder_learns_to_classify_its_training_images(rooms):
    """Held-out rooms are not tested, because three rooms are too few to recognize objects in others."""
    data = RecordedRooms([str(rooms)])
    data.load_images()
    names, name_of_object = read_object_names(data)
    images = label_images(data, name_of_object, data.rooms)
    torch.manual_seed(0)
    policy = Rocket2ForActionPrediction(
        Rocket2Config(**read_rocket2_recipe("rocket2").rocket2.config | {"rgb_frozen": False})
    )
    initialize_for_pretraining(policy)
    head = torch.nn.Linear(policy.config.rgb_width, 1 + len(names))
    before, _ = evaluate_encoder(policy, head, images)
    train_encoder(policy, head, images, steps=300, seed=0)
    after, false_detection_rate = evaluate_encoder(policy, head, images)
    assert before < 0.4 and after > 0.6 and false_detection_rate < 0.1


def test_sinusoidal_positions_differ_for_all_patches():
    positions = sinusoidal_positions(6, 8, 64)
    assert positions.shape == (48, 64) and sinusoidal_positions(2, 2, 30).shape == (4, 30)
    assert positions[8 + 1, 0] == pytest.approx(math.sin(math.pi / 6)), "row 1 of 6 at half a period"
    assert torch.pdist(positions).min() > 0.5


def test_only_the_pretrained_encoder_of_the_policy_is_frozen(pretrained):
    policy = Rocket2ForActionPrediction.from_pretrained(pretrained)
    assert policy.config.rgb_frozen
    assert not any(weight.requires_grad for weight in policy.views.rgb.parameters())
    assert all(weight.requires_grad for weight in policy.views.mask.parameters())
    assert json.loads((pretrained / "config.json").read_text())["model_type"] == "rocket2"


def test_same_seed_gives_the_same_policy_and_report(rooms, pretrained, tmp_path, capsys):
    assert main(["pretrain-encoder", str(rooms), "--steps", "60", "--out", str(tmp_path / "again")]) == 0
    printed = capsys.readouterr().out
    assert "2 for training, 1 held out" in printed
    assert re.search(r"patches +in held-out rooms, \d+\.\d% of those with an object are classified right", printed)
    one, other = (
        Rocket2ForActionPrediction.from_pretrained(path).state_dict() for path in (pretrained, tmp_path / "again")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--recipe", "rocket"],
            "the recipe 'rocket' has no rocket2 section, so it does not train ROCKET-2: choose rocket2",
        ),
        (["--steps", "0"], "argument --steps: must be an integer of at least 1, got '0'"),
    ],
)
def test_invalid_options_are_refused_in_one_line(rooms, options, message, tmp_path, capsys):
    try:
        code = main(["pretrain-encoder", str(rooms), "--out", str(tmp_path / "out"), *options])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_single_room_is_refused(tmp_path, capsys):
    record_rooms(tmp_path / "one", rooms=1, views=4, workers=1, first_seed=20)
    assert main(["pretrain-encoder", str(tmp_path / "one"), "--steps", "1", "--out", str(tmp_path / "out")]) == 2
    assert "the dataset has only one room" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
