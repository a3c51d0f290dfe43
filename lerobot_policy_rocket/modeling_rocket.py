"""Policy class with which lerobot's tools run rocket_hf's policies."""

from collections import deque
from pathlib import Path
from typing import Any, Self

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import ACTION, NEUTRAL_STATISTICS, STATE, write_policy_files
from rocket_hf.hub import POLICY_FILES, resolve
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.normalization import CONSTANT_DEVIATIONS, Statistics
from rocket_hf.modeling.processing_rocket import POLICY_SETTINGS, RocketProcessor
from rocket_hf.tokenizer import load_tokenizer

from .configuration_rocket import LeRobotRocketConfig, camera_name

MODEL_PREFIX = "model."  # of the names of weights in this class, in front of rocket_hf's own


class LeRobotRocketPolicy(PreTrainedPolicy):
    """rocket_hf policy with the interface of lerobot's policies.

    Batches come from lerobot's pipelines, which normalize state and actions; the policy's own processor prepares images
    and prompts.
    """

    config_class = LeRobotRocketConfig
    name = "rocket"

    def __init__(
        self,
        config: LeRobotRocketConfig,
        dataset_stats: dict[str, Any] | None = None,
        dataset_meta: Any = None,
        base: tuple[RocketForActionPrediction, RocketProcessor] | None = None,
    ):
        """Create a policy.

        Args:
            config: lerobot's configuration of the policy.
            dataset_stats: lerobot's statistics of the dataset on which the policy is trained.
            dataset_meta: lerobot's metadata of that dataset; not used.
            base: Model and processor of a pretrained policy; without it the weights are new.
        """
        super().__init__(config)
        if not config.cameras:
            config.set_robot_from_features()
        config.validate_features()
        robot = config.rocket_config()
        self.model = base[0] if base else RocketForActionPrediction(robot)
        self.processor = create_processor(config, robot, base[1] if base else None, dataset_stats)
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: LeRobotRocketConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a published policy; if the configuration describes a new one, adapt it to the dataset's robot."""
        pinned: dict[str, Any] = {"revision": revision} if revision else {}
        resolve(pretrained_name_or_path, POLICY_FILES, revision=revision)  # raises if it names foreign code
        if config is None:
            config = LeRobotRocketConfig.from_pretrained(pretrained_name_or_path, **pinned)
        model = RocketForActionPrediction.from_pretrained(pretrained_name_or_path, alignment=None, **pinned)
        processor = RocketProcessor.from_pretrained(pretrained_name_or_path, **pinned)
        if not config.cameras:
            config.set_robot_from_features()
            model = adapt_to_robot(model, config)
            config.copy_rocket_config(model.config)
        policy = cls(config, kwargs.get("dataset_stats"), kwargs.get("dataset_meta"), (model, processor))
        return policy.to(config.device).eval()

    def reset(self) -> None:
        self.queue: deque[Tensor] = deque()

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        if reduction != "mean":
            raise UserError("a rocket policy computes one loss per batch: train without sample_weighting")
        inputs = self.model_inputs(batch)
        inputs |= {"actions": self.processor.clip_actions(batch[ACTION]), "action_is_pad": batch[f"{ACTION}_is_pad"]}
        output = self.model(**inputs)
        return output.loss, {name: loss.item() for name, loss in output.losses.items()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Return normalized actions (B, chunk, action_dim); `noise` (B, chunk, max_action_dim) is optional."""
        noise = {"noise": kwargs["noise"]} if kwargs.get("noise") is not None else {}
        return self.model.predict_action_chunk(**self.model_inputs(batch), **noise)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Return the next action (B, action_dim), predicting a new chunk when the previous one has been executed."""
        if not self.queue:
            chunk = self.predict_action_chunk(batch, **kwargs)
            self.queue.extend(chunk[:, : self.config.n_action_steps].transpose(0, 1))
        return self.queue.popleft()

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Convert lerobot's batch, with normalized state and images in [0, 1], to inputs of the model."""
        images = {camera_name(key): batch[key] for key in self.config.image_features if key in batch}
        images = {camera: images.get(camera) for camera in self.config.cameras}
        pixels, present = self.processor.prepare_images(images, {})
        state = self.processor.clip_state(batch[STATE])  # lerobot's normalizer does not clip
        tokens = self.processor.encode_text(batch["task"], state, pixels.device)
        return {"images": pixels, "camera_mask": present, "state": state, **tokens}

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the folder as rocket_hf does, so that transformers' AutoModel can load it too."""
        weights = {
            name.removeprefix(MODEL_PREFIX): weight for name, weight in (state_dict or self.state_dict()).items()
        }
        self.model.save_pretrained(save_directory, state_dict=weights)
        write_policy_files(save_directory, self.model.config, self.processor)

    def _validate_peft_config(self, peft_config: Any) -> None:
        raise UserError("lerobot cannot train adapters of rocket policies: use `rocket-hf adapt`")


def adapt_to_robot(model: RocketForActionPrediction, config: LeRobotRocketConfig) -> RocketForActionPrediction:
    """Return the model for the dataset's robot, with new layers where sizes differ; the model itself if none do."""
    names = ("cameras", "state_dim", "action_dim", "chunk_size", "state_normalization", "action_normalization")
    robot = {name: getattr(config, name) for name in names}
    required = RocketConfig(policy_config=model.config.policy_config, **robot).to_dict()
    current = model.config.to_dict()
    return model if all(required[name] == current[name] for name in names) else model.for_robot(robot)


def create_processor(
    config: LeRobotRocketConfig, robot: RocketConfig, base: RocketProcessor | None, dataset_stats: dict[str, Any] | None
) -> RocketProcessor:
    """Return the base policy's processor, with the dataset's statistics if it is trained on a dataset."""
    if base is None:
        tokenizer = load_tokenizer(config.tokenizer)
        return RocketProcessor.for_config(robot, tokenizer, rocket_statistics(dataset_stats))
    if dataset_stats is None:
        return base
    kept = {name: getattr(base, name) for name in ("image_size", *POLICY_SETTINGS)}
    return RocketProcessor.for_config(robot, base.tokenizer, rocket_statistics(dataset_stats), **kept)


def rocket_statistics(dataset_stats: dict[str, Any] | None) -> dict[str, Statistics]:
    """Convert lerobot's statistics of a dataset to those of state and action for the processor."""
    converted: dict[str, Statistics] = {}
    for part, feature in (("state", STATE), ("action", ACTION)):
        stats = (dataset_stats or {}).get(feature, {})
        values = {key: [float(number) for number in stats[key]] for key in stats if key in NEUTRAL_STATISTICS}
        if "std" in values:  # lerobot keeps deviations of zero
            values["std"] = [deviation or CONSTANT_DEVIATIONS[part] for deviation in values["std"]]
        converted[part] = dict(values)
    return converted
