"""Adaptation of a policy to another robot: shared weights, new layers and rejected robots."""

import json

import pytest
import torch

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.robot_adaptation import robot_settings
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


def create_policy(family: str) -> RocketForActionPrediction:
    torch.manual_seed(0)
    return RocketForActionPrediction(tiny_config(family, alignment=None)).eval()


def fixed_batch(model: RocketForActionPrediction) -> dict:
    batch = model.config.fake_batch()
    if model.config.policy_config.draws_noise:
        shape = (2, model.config.chunk_size, model.config.policy_config.max_action_dim)
        batch |= {"noise": torch.ones(shape), "time": torch.full((2,), 0.5)}
    return batch


@pytest.mark.parametrize("family", TINY_POLICIES)
def test_only_layers_with_sizes_of_robot_are_new(family):
    base = create_policy(family)
    policy = base.for_robot(OTHER)
    assert policy.new_layers == NEW.get(family, [])
    assert robot_settings(policy.config) == robot_settings(base.config) | OTHER
    own = base.state_dict()
    for name, weight in policy.state_dict().items():
        if name.rpartition(".")[0] not in policy.new_layers:
            assert weight.data_ptr() == own[name].data_ptr(), name
    losses = policy.train()(**fixed_batch(policy)).losses
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(parameter).all() for parameter in policy.parameters())
    assert policy.eval().predict_action_chunk(**fixed_batch(policy)).shape[-1] == 3


@pytest.mark.parametrize("family", TINY_POLICIES)
def test_policy_for_same_robot_gives_same_actions(family):
    base = create_policy(family)
    policy = base.for_robot(robot_settings(base.config))
    assert policy.new_layers == [] and not policy.training
    assert torch.equal(policy.predict_action_chunk(**fixed_batch(base)), base.predict_action_chunk(**fixed_batch(base)))


def test_robot_is_read_from_adapter_folder(tmp_path):
    (tmp_path / "robot.json").write_text(json.dumps(OTHER))
    assert create_policy("pi0").for_robot(tmp_path).config.action_names == ["x", "y", "grip"]
    (tmp_path / "robot.json").unlink()
    with pytest.raises(ValueError, match=r"does not describe its robot: it has no robot\.json"):
        create_policy("pi0").for_robot(tmp_path)


@pytest.mark.parametrize(
    ("robot", "message"),
    [
        ({"action_dim": 40, "state_dim": 9}, "state_dim is 9, at most 8; action_dim is 40, at most 8"),
        ({"color": 1}, "a robot has no setting 'color'"),
    ],
)
def test_error_lists_every_limit_that_robot_exceeds(robot, message):
    with pytest.raises(ValueError, match=message):
        create_policy("pi0").for_robot(robot)
