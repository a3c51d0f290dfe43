"""What a card says of a policy, read off its configuration, its processor and its self-test."""

from rocket_hf.hub_cards.facts import Artifact, Robot
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.self_test import SelfTest


def describe(
    policy: RocketForActionPrediction, processor: RocketProcessor, repo: str, revision: str, test: SelfTest
) -> Artifact:
    return Artifact(
        repo=repo,
        revision=revision,
        backbone=backbone_of(policy.config),
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        dtype=str(policy.dtype).removeprefix("torch."),
        robot=robot_of(policy.config, processor),
        versions=test.versions,
        tolerances=test.tolerances,
        image_effect=test.image_effect,
    )


def backbone_of(config: RocketConfig) -> str:
    policy = config.policy_config.to_dict()
    return policy.get("variant", policy["model_type"].removeprefix("rocket_"))


def robot_of(config: RocketConfig, processor: RocketProcessor) -> Robot:
    return Robot(
        cameras=list(config.cameras),
        image_size=processor.image_size,
        resize=processor.resize,
        state_dim=config.state_dim,
        action_dim=config.action_dim,
        chunk_size=config.chunk_size,
        state_normalization=processor.state_normalization,
        action_normalization=processor.action_normalization,
        state_names=list(config.state_names) if config.state_names else None,
        action_names=list(config.action_names) if config.action_names else None,
    )
