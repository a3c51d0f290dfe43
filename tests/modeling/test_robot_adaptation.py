"""A policy for another robot: what stays, what is new, what is refused."""

import json

import pytest
import torch

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.robot_adaptation import robot_of
from rocket_hf.tiny import TINY_POLICIES, tiny_config

OTHER = {"cameras": ["top"], "state_dim": 4, "action_dim": 3, "action_names": ["x", "y", "grip"]}
NEW = {
    "openvla-oft": [
        "policy.action_head.fc_in",
        "policy.action_head.fc_out",
        "policy.action_head.norm_in",
        "policy.state_projector.layers.0",
    ]
}


def make(family: str) -> RocketForActionPrediction:
    torch.manual_seed(0)
    return RocketForActionPrediction(tiny_config(family, alignment=None)).eval()


def observed(model: RocketForActionPrediction) -> dict:
    batch = model.config.fake_batch()
    if model.config.policy_config.draws_noise:
        shape = (2, model.config.chunk_size, model.config.policy_config.max_action_dim)
        batch |= {"noise": torch.ones(shape), "time": torch.full((2,), 0.5)}
    return batch


@pytest.mark.parametrize("family", TINY_POLICIES)
def test_only_layers_whose_sizes_the_robot_sets_are_new(family):
    base = make(family)
    policy = base.for_robot(OTHER)
    assert policy.new_layers == NEW.get(family, [])
    assert robot_of(policy.config) == robot_of(base.config) | OTHER
    own = base.state_dict()
    for name, weight in policy.state_dict().items():
        if name.rpartition(".")[0] not in policy.new_layers:
            assert weight.data_ptr() == own[name].data_ptr(), name
    losses = policy.train()(**observed(policy)).losses
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(parameter).all() for parameter in policy.parameters())
    assert policy.eval().predict_action_chunk(**observed(policy)).shape[-1] == 3


@pytest.mark.parametrize("family", TINY_POLICIES)
def test_the_same_robot_is_the_same_policy(family):
    base = make(family)
    policy = base.for_robot(robot_of(base.config))
    assert policy.new_layers == [] and not policy.training
    assert torch.equal(policy.predict_action_chunk(**observed(base)), base.predict_action_chunk(**observed(base)))


def test_the_specification_may_lie_beside_an_adapter(tmp_path):
    (tmp_path / "robot.json").write_text(json.dumps(OTHER))
    assert make("pi0").for_robot(tmp_path).config.action_names == ["x", "y", "grip"]
    (tmp_path / "robot.json").unlink()
    with pytest.raises(ValueError, match=r"says nothing of its robot: it has no robot.json"):
        make("pi0").for_robot(tmp_path)


@pytest.mark.parametrize(
    ("robot", "sentence"),
    [
        ({"action_dim": 40, "state_dim": 9}, "state_dim at most 8 against 9; action_dim at most 8 against 40"),
        ({"color": 1}, "a robot has no 'color'"),
    ],
)
def test_what_does_not_fit_is_told_side_by_side(robot, sentence):
    with pytest.raises(ValueError, match=sentence):
        make("pi0").for_robot(robot)
