"""What a new ROCKET-2 policy is taught to see before it learns to act."""

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
from rocket_hf.training.recipe_files import read_recipe
from rocket_hf.training.rocket2.dataset import RecordedRooms
from rocket_hf.training.rocket2.encoder_pretraining import judge, names_of_objects, pictures_of, prepare, train, waves

pytestmark = pytest.mark.needs_lerobot


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms") / "three"
    record_rooms(folder, rooms=3, views=8, workers=1, first_seed=20)
    return folder


@pytest.fixture(scope="module")
def made(rooms, tmp_path_factory):
    out = tmp_path_factory.mktemp("eyes") / "eyes"
    assert main(["pretrain-encoder", str(rooms), "--steps", "60", "--out", str(out)]) == 0
    return out


def test_pictures_hold_the_names_that_the_rooms_were_made_with(rooms):
    data = RecordedRooms([str(rooms)])
    data.read()
    names, called = names_of_objects(data)
    kinds = {f"go to the {item.kind}" for seed in (20, 21, 22) for item in make_room(seed).objects}
    assert names == sorted(kinds)
    pictures = pictures_of(data, called, [21])
    here = make_room(21).objects
    expected = {0} | {1 + names.index(f"go to the {item.kind}") for item in here}
    assert set(pictures.named.unique().tolist()) == expected
    frames = [row for episode in data.episodes if episode.room == 21 for row in episode.frames]
    assert ((pictures.named > 0) == (data.objects[frames] > 0)).all()
    shares = pictures.shares(torch.tensor([0]), 10, len(names))
    corner = torch.stack([(pictures.named[0, :10, :10] == name).float().mean() for name in range(1 + len(names))])
    torch.testing.assert_close(shares[0, 0], corner)
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(1, 48))


def test_the_encoder_learns_the_names(rooms):
    """On the pictures that it learns from: three rooms are too few to know objects elsewhere."""
    data = RecordedRooms([str(rooms)])
    data.read()
    names, called = names_of_objects(data)
    pictures = pictures_of(data, called, data.rooms)
    torch.manual_seed(0)
    policy = Rocket2ForActionPrediction(Rocket2Config(**read_recipe("rocket2").goals.config | {"rgb_frozen": False}))
    prepare(policy)
    head = torch.nn.Linear(policy.config.rgb_width, 1 + len(names))
    before, _ = judge(policy, head, pictures)
    train(policy, head, pictures, steps=300, seed=0)
    after, imagined = judge(policy, head, pictures)
    assert before < 0.4 and after > 0.6 and imagined < 0.1


def test_waves_tell_places_apart():
    places = waves(6, 8, 64)
    assert places.shape == (48, 64) and waves(2, 2, 30).shape == (4, 30)
    assert places[8 + 1, 0] == pytest.approx(math.sin(math.pi / 6)), "row 1 of 6 at half a period"
    assert torch.pdist(places).min() > 0.5


def test_the_encoder_learns_and_stays_as_it_is_then(made, capsys):
    policy = Rocket2ForActionPrediction.from_pretrained(made)
    assert policy.config.rgb_frozen
    assert not any(weight.requires_grad for weight in policy.views.rgb.parameters())
    assert all(weight.requires_grad for weight in policy.views.mask.parameters())
    assert json.loads((made / "config.json").read_text())["model_type"] == "rocket2"


def test_the_same_seed_gives_the_same_eyes(rooms, made, tmp_path, capsys):
    assert main(["pretrain-encoder", str(rooms), "--steps", "60", "--out", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert "2 to learn from, 1 held out" in said and re.search(r"patches +\d+\.\d% of those with an object", said)
    one, other = (Rocket2ForActionPrediction.from_pretrained(path).state_dict() for path in (made, tmp_path / "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--recipe", "rocket"], "--recipe rocket is not for ROCKET-2: take rocket2"),
        (["--steps", "0"], "argument --steps: must be at least 1"),
    ],
)
def test_wrong_words_get_one_sentence(rooms, words, sentence, tmp_path, capsys):
    try:
        code = main(["pretrain-encoder", str(rooms), "--out", str(tmp_path / "out"), *words])
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
