"""ROCKET-2 in the loop: it learns, carries its memory, stops and goes on, shares its steps, leaves a policy behind."""

import re
import shutil

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModel

from rocket_hf.evaluation.trained_policy import find_origin, load_trained_rocket2
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_interface import Goal
from rocket_hf.training.recipe_files import read_recipe
from rocket_hf.training.rocket2.batches import rocket2_batch
from rocket_hf.training.rocket2.task import create_rocket2_task

from .conftest import (
    checkpoint,
    exported,
    forget_processes,
    journal,
    largest_difference,
    run_ranks,
    run_training,
    settings,
    steps_of,
)

pytestmark = pytest.mark.needs_lerobot

TINY = {
    "goals__config__rgb_frozen": False, "goals__config__heads": 2, "goals__config__rgb_heads": 2,
    "goals__config__width": 16, "goals__config__rgb_width": 16, "goals__config__rgb_mlp_width": 16,
    "goals__config__mask_width": 8, "goals__config__patch_size": 20, "goals__config__spatial_layers": 1,
    "goals__config__view_tokens": 2, "goals__chunk_steps": 6, "goals__chunks": 2, "goals__goals": 2,
    "goals__warmup_steps": 2,
    "schedule__kind": "constant", "schedule__warmup": 0, "run__steps": 4, "run__validate_every": 2,
    "run__save_every": 2, "run__keep": 9, "run__log_every": 1, "run__validation_samples": 5, "data__validation": 0.34,
}  # fmt: skip


@pytest.fixture(scope="module")
def train(rooms):
    """A tiny run that has to end well."""

    def run(out, *more, recipe="rocket2", **changes):
        given = ["--recipe", recipe, "--dataset", rooms, "--out", out, *more, *settings(**(TINY | changes))]
        outcome = run_training(*given)
        assert outcome.code == 0, outcome.stderr
        return outcome

    return run


@pytest.fixture(scope="module")
def four(train, tmp_path_factory):
    """A run of four steps, the first two of them with views alone."""
    out = tmp_path_factory.mktemp("runs") / "four"
    outcome = train(out, run__ema=0.9, goals__config__spatial_dropout=0.1)
    return out, outcome


def test_it_learns_to_see_and_then_to_act(train, tmp_path):
    train(tmp_path, run__steps=40, goals__warmup_steps=20, run__validate_every=21, optimizer__lr=5e-3)
    lines = steps_of(tmp_path)
    for name in ("auxiliary/point", "auxiliary/box"):
        values = [line[name] for line in lines[:20]]
        assert sum(values[-5:]) < 0.8 * sum(values[:5]), name
    assert not any(name.startswith("action/") for line in lines[:20] for name in line)
    first, last = [line["validation/error"] for line in journal(tmp_path) if "validation/error" in line]
    assert last < 0.9 * first  # of actions in a room that it has not seen


def test_what_it_says_and_leaves_behind(four):
    out, outcome = four
    lines = steps_of(out)
    assert all(line["skipped"] == 0 and line["chunks"] in (1, 2) for line in lines)
    weights = {"action": 0.125, "visibility": 1.0, "point": 4.0, "box": 2.0}
    for line in lines[2:]:
        named = {name: value for name, value in line.items() if name.startswith(("action/", "auxiliary/"))}
        assert len(named) == 6
        total = sum(weights["action" if "action/" in n else n.partition("/")[2]] * value for n, value in named.items())
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    early, late = [line for line in journal(out) if "validation/turn" in line]
    assert "validation/error" not in early
    told = {"walk", "walk_accuracy", "visibility_accuracy", "visibility_majority", "point_x_error", "point_x_constant"}
    assert {f"validation/{name}" for name in told} <= late.keys()
    assert late["validation/error"] == pytest.approx(sum(late[f"validation/{n}"] for n in ("walk", "strafe", "turn")))
    assert "nats of surprise" in outcome.stdout and "auxiliary/box" in outcome.stdout
    assert 0 < late["validation/visibility_majority"] <= 1


def test_two_steps_and_two_more_are_four_bit_for_bit(four, train, tmp_path):
    whole, _ = four
    changes = {"run__ema": 0.9, "goals__config__spatial_dropout": 0.1}
    for last in (1, 3, 4):
        train(tmp_path / "run", *(["--resume"] if last > 1 else []), run__steps=last, **changes)
        if last < 4:
            shutil.rmtree(tmp_path / "run" / "policy")
    for name in ("model", "optimizer", "average", "random"):
        assert largest_difference(checkpoint(whole, 4, name), checkpoint(tmp_path / "run", 4, name)) == 0, name
    assert largest_difference(exported(whole), exported(tmp_path / "run")) == 0
    clock = ("seconds/", "samples_per_second")
    one, other = ([{k: v for k, v in line.items() if not k.startswith(clock)} for line in steps_of(out)]
                  for out in (whole, tmp_path / "run"))  # fmt: skip
    assert one == other


def test_two_ranks_in_two_passes_train_what_one_trains(train, rooms, tmp_path):
    train(tmp_path / "alone")
    given = ["--recipe", "rocket2", "--dataset", rooms, *settings(**TINY, run__device_batch_size=1)]
    assert run_ranks(2, tmp_path / "two", *given) == [0, 0], (tmp_path / "ranks.txt").read_text()
    for step in (2, 4):
        assert largest_difference(checkpoint(tmp_path / "alone", step), checkpoint(tmp_path / "two", step)) < 1e-5
    for mine, theirs in zip(steps_of(tmp_path / "alone"), steps_of(tmp_path / "two"), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-3)
    errors = [[line for line in journal(tmp_path / run) if "validation/error" in line][-1] for run in ("alone", "two")]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


def test_a_carried_memory_is_the_whole_segment_at_once(rooms):
    changes = [f"{key.replace('__', '.')}={value}" for key, value in TINY.items()]
    recipe = read_recipe("rocket2", [f"data.datasets.0.id={rooms}", *changes, "goals.chunks=3", "goals.views_share=0"])
    forget_processes()
    system = create_rocket2_task(recipe, Accelerator(cpu=True))
    forget_processes()
    chunks = next(batches for batches in system.batches(2) if len(batches) == 3)
    policy, parts, memory = system.policy.train(), [], None
    batches = [rocket2_batch(chunk, policy.device, policy.config.auxiliary_heads) for chunk in chunks]
    for batch in batches:
        output = policy(memory=memory, **batch)
        parts.append(output)
        memory = output.memory
    whole = {key: value if key.startswith("goal_") and key != "goal_index" else torch.cat([b[key] for b in batches], 1)
             for key, value in batches[0].items()}  # fmt: skip
    once = policy(**whole)
    for name, scores in once.logits.items():
        torch.testing.assert_close(torch.cat([part.logits[name] for part in parts], 1), scores, atol=1e-5, rtol=1e-5)
        carried = sum(part.losses[f"action/{name}"] for part in parts)
        torch.testing.assert_close(carried, once.losses[f"action/{name}"], atol=1e-4, rtol=1e-5)
    head = policy.action_heads.factors["act_turn"].weight
    (by_parts,) = torch.autograd.grad(sum(part.losses["action/turn"] for part in parts), head)
    (at_once,) = torch.autograd.grad(once.losses["action/turn"], head)
    torch.testing.assert_close(by_parts, at_once, atol=1e-4, rtol=1e-4)  # which the memory does not cut short


def acted(policy, steps: int = 3) -> list[torch.Tensor]:
    """Actions and what is seen, of noise."""
    draw = torch.Generator().manual_seed(0)
    size, state, found = policy.config.image_size, policy.initial_state(2), []
    goal = Goal(torch.randint(0, 256, (2, 3, *size), generator=draw, dtype=torch.uint8),
                torch.randint(0, 2, (2, *size), generator=draw), torch.tensor([6, 6]))  # fmt: skip
    for step in range(steps):
        images = torch.randint(0, 256, (2, 3, *size), generator=draw, dtype=torch.uint8)
        action, state = policy.step(images, goal if not step else None, state, generator=draw)
        found += [action, *state.seen.values(), state.memory.values]
    return found


def test_the_exported_policy_is_the_trained_one(four):
    out, _ = four
    loaded = AutoModel.from_pretrained(out / "policy", trust_remote_code=True)
    assert list(loaded.config.auxiliary_heads) == ["visibility", "point"]
    trained = load_trained_rocket2(find_origin(out / "checkpoints" / "step-00000004"))
    ours = Rocket2ForActionPrediction.from_pretrained(out / "policy")
    for other in (trained, ours):
        for one, two in zip(acted(loaded), acted(other), strict=True):
            assert torch.equal(one, two)
    assert largest_difference(dict(loaded.state_dict()), exported(out)) == 0


def test_cloning_alone_makes_no_heads_and_exports_the_same_files(four, train, tmp_path):
    train(tmp_path, recipe="rocket2-cloning", goals__warmup_steps=0, run__steps=2)
    train(tmp_path / "visibility", recipe="rocket2-visibility", goals__warmup_steps=1, run__steps=2)
    files = [sorted(path.name for path in (out / "policy").iterdir()) for out in (four[0], tmp_path)]
    assert files[0] == files[1]
    assert not [name for name in checkpoint(tmp_path, 2) if name.startswith("auxiliary")]
    heads = {name.split(".")[1] for name in checkpoint(tmp_path / "visibility", 2) if name.startswith("auxiliary")}
    assert heads == {"visibility"}
    assert not [
        name for line in journal(tmp_path) for name in line if name.startswith(("auxiliary/", "validation/vis"))
    ]


def test_a_policy_trains_on_with_heads_that_it_had_lost(four, train, tmp_path):
    train(tmp_path, "--policy", four[0] / "policy", run__steps=1, goals__warmup_steps=0, optimizer__lr=1e-9)
    before, after = exported(four[0]), exported(tmp_path)
    assert largest_difference(before, after) < 1e-6
    assert {name.split(".")[1] for name in checkpoint(tmp_path, 1) if name.startswith("auxiliary")} == {
        "visibility", "point", "box",
    }  # fmt: skip


def test_a_dry_run_tells_what_there_is(train, tmp_path, four):
    text = train(tmp_path / "never", "--dry-run").stdout
    assert not (tmp_path / "never").exists()
    assert "in 3 rooms: 3 times views, 12 ways to an object" in text and "2 rooms to train on, 1 to validate" in text
    counted = sum(int(number.replace(",", "")) for number in re.findall(r"([\d,]+) of [\d,]+ weights", text))
    assert counted == sum(weight.numel() for weight in checkpoint(four[0], 4).values())
    assert "4 of 4 samples: 1 processes x 4 samples x 1 passes, each of up to 2 chunks of 6 steps" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"goals__chunk_steps": 0}, "goals.chunk_steps must be at least 1, got 0"),
        ({"goals__own_goals": 2}, "goals.own_goals must lie between 0 and 1"),
        ({"goals__action": 0}, "goals.action must be above 0"),
        ({"goals__keep": ["point"], "goals__point": 0}, "goals.keep: there is no head 'point', of those that train"),
        ({"goals__point": 0, "goals__box": 0, "goals__visibility": 0, "goals__keep": []}, "views teach nothing but"),
        ({"goals__config__with": 3}, "did you mean 'width'?"),
        ({"goals__config__width": 15}, "must be a multiple of heads=2"),
        ({"goals__config__rgb_frozen": True}, "goals.config.rgb_frozen would keep the encoder of a new policy"),
        ({"goals__config__image_size": [40, 40]}, "the policy sees pictures of 40x40, the dataset has 60x80"),
        ({"goals__config__action_factors": {"walk": 3, "turn": 9}}, "the policy's actions are walk, turn, the"),
        ({"goals__config__action_factors": {"walk": 2, "strafe": 3, "turn": 9}}, "the policy has 2 choices of 'walk'"),
        ({"goals__config__interactions": 3}, "the policy knows 3 interactions, the dataset has number 6"),
        ({"alignment__student_layers": [1]}, "alignment has no meaning for ROCKET-2"),
        ({"parts__vision": "full"}, "parts has no meaning for ROCKET-2"),
        ({"run__quantize": True}, "run.quantize has no meaning for ROCKET-2"),
        ({"data__workers": 2}, "ROCKET-2 takes its samples from memory"),
        ({"data__datasets__0__episodes": [1]}, "ROCKET-2 takes all rooms and columns: give its id alone"),
        ({"policy": "nowhere/at-all"}, "is not a local folder and cannot be downloaded from the Hub"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(rooms, tmp_path, changes, said):
    given = ["--recipe", "rocket2", "--dataset", rooms, "--out", tmp_path / "run", *settings(**(TINY | changes))]
    outcome = run_training(*given)
    assert outcome.code == 2 and said in outcome.stderr, outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_dataset_of_something_else_is_named(stored, policies, rooms, tmp_path):
    outcome = run_training(
        "--recipe", "rocket2", "--dataset", stored, "--out", tmp_path / "run", *settings(**TINY)
    )  # fmt: skip
    assert (
        outcome.code == 2 and "has no column 'observation.images.view': `rocket-hf simulate vizdoom`" in outcome.stderr
    )
    given = ["--recipe", "rocket2", "--dataset", rooms, "--policy", policies("pi0"), "--out", tmp_path / "run"]
    outcome = run_training(*given)
    assert outcome.code == 2 and "describes a model 'rocket'" in outcome.stderr


def test_shards_are_refused(rooms, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    outcome = run_training("--recipe", "rocket2", "--dataset", rooms, "--out", tmp_path / "run", *settings(**TINY))
    assert outcome.code == 2 and "launch without FSDP2 and DeepSpeed" in outcome.stderr
