"""lerobot's pipelines around a policy that is yet to be trained; those of a published one lie beside its weights."""

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

from rocket_hf.export.lerobot_pipelines import FILES

from .configuration_rocket import LeRobotRocketConfig


def make_rocket_pre_post_processors(
    config: LeRobotRocketConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline[PolicyAction, PolicyAction]]:
    before, after = (file.removesuffix(".json") for file in FILES)
    mapping = config.normalization_mapping
    covered = {**(config.input_features or {}), **(config.output_features or {})}
    preprocessor: PolicyProcessorPipeline = PolicyProcessorPipeline(
        steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=config.device or "cpu"),
            NormalizerProcessorStep(features=covered, norm_map=mapping, stats=dataset_stats),
        ],
        name=before,
    )
    postprocessor = PolicyProcessorPipeline[PolicyAction, PolicyAction](
        steps=[
            UnnormalizerProcessorStep(features=config.output_features or {}, norm_map=mapping, stats=dataset_stats),
            DeviceProcessorStep(device="cpu"),
        ],
        name=after,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return preprocessor, postprocessor
