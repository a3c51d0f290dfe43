"""lerobot's processor pipelines for a policy to be trained. Those of a published policy are in its folder."""

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action

from rocket_hf.export.policy_folder import LEROBOT_FILES

from .configuration_rocket import LeRobotRocketConfig


def make_rocket_pre_post_processors(
    config: LeRobotRocketConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline[PolicyAction, PolicyAction]]:
    """Create the pipelines; lerobot finds this function by its name."""
    preprocessor_name, postprocessor_name = (file.removesuffix(".json") for file in LEROBOT_FILES)
    mapping = config.normalization_mapping
    all_features = {**(config.input_features or {}), **(config.output_features or {})}
    preprocessor: PolicyProcessorPipeline = PolicyProcessorPipeline(
        steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=config.device or "cpu"),
            NormalizerProcessorStep(features=all_features, norm_map=mapping, stats=dataset_stats),
        ],
        name=preprocessor_name,
    )
    postprocessor = PolicyProcessorPipeline[PolicyAction, PolicyAction](
        steps=[
            UnnormalizerProcessorStep(features=config.output_features or {}, norm_map=mapping, stats=dataset_stats),
            DeviceProcessorStep(device="cpu"),
        ],
        name=postprocessor_name,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return preprocessor, postprocessor
