"""Our policies as lerobot's tools call them: normalized batches in, a loss or normalized actions out."""

from collections import deque
from pathlib import Path
from typing import Any, Self

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor
from transformers import AutoTokenizer

from rocket_hf.export.lerobot_pipelines import ACTION, NEUTRAL, STATE
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.normalization import Statistics
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.publishing.package import write_surroundings

from .configuration_rocket import LeRobotRocketConfig, camera_of

MODEL = "model."  # what this class puts before the names of our weights


class LeRobotRocketPolicy(PreTrainedPolicy):
    """The processor makes pictures and prompts; lerobot's pipelines normalize."""

    config_class = LeRobotRocketConfig
    name = "rocket"

    def __init__(
        self,
        config: LeRobotRocketConfig,
        dataset_stats: dict[str, Any] | None = None,
        dataset_meta: Any = None,
        base: tuple[RocketForActionPrediction, RocketProcessor] | None = None,
    ):
        """`base` is what a pretrained policy is loaded from; without it the weights are new."""
        super().__init__(config)
        if not config.cameras:
            config.take_robot_from_features()
        config.validate_features()
        robot = config.rocket_config()
        self.model = base[0] if base else RocketForActionPrediction(robot)
        self.processor = processor_for(config, robot, base[1] if base else None, dataset_stats)
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: LeRobotRocketConfig | None = None,
        revision: str | None = None,
        **given: Any,
    ) -> Self:
        """A published policy, adapted to the dataset's robot where the configuration is a new one."""
        pinned: dict[str, Any] = {"revision": revision} if revision else {}
        if config is None:
            config = LeRobotRocketConfig.from_pretrained(pretrained_name_or_path, **pinned)
        model = RocketForActionPrediction.from_pretrained(pretrained_name_or_path, alignment=None, **pinned)
        processor = RocketProcessor.from_pretrained(pretrained_name_or_path, **pinned)
        if not config.cameras:
            config.take_robot_from_features()
            model = for_robot(model, config)
            config.take_policy(model.config)
        policy = cls(config, given.get("dataset_stats"), given.get("dataset_meta"), (model, processor))
        return policy.to(config.device).eval()

    def reset(self) -> None:
        self.queue: deque[Tensor] = deque()

    def get_optim_params(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, batch: dict[str, Any], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        if reduction != "mean":
            raise ValueError("a rocket policy has one loss for a batch: train it without sample_weighting")
        inputs = self.inputs(batch)
        inputs |= {"actions": batch[ACTION], "action_is_pad": batch[f"{ACTION}_is_pad"]}
        output = self.model(**inputs)
        return output.loss, {name: loss.item() for name, loss in output.losses.items()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **more: Any) -> Tensor:
        """Normalized actions (B, chunk, action_dim); `noise` may be given, (B, chunk, widest action)."""
        noise = {"noise": more["noise"]} if more.get("noise") is not None else {}
        return self.model.predict_action_chunk(**self.inputs(batch), **noise)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **more: Any) -> Tensor:
        """The next action (B, action_dim); the policy looks again when those it has chosen are executed."""
        if not self.queue:
            chunk = self.predict_action_chunk(batch, **more)
            self.queue.extend(chunk[:, : self.config.n_action_steps].transpose(0, 1))
        return self.queue.popleft()

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Our batch, of lerobot's, whose state is normalized and whose pictures lie in 0..1."""
        images = {camera_of(key): batch[key] for key in self.config.image_features if key in batch}
        images = {camera: images.get(camera) for camera in self.config.cameras}
        pixels, present = self.processor.prepare_images(images, {})
        state = batch[STATE]
        tokens = self.processor.encode_text(batch["task"], state, pixels.device)
        return {"images": pixels, "camera_mask": present, "state": state, **tokens}

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """As we export a policy: transformers' AutoModel loads the folder too."""
        weights = {name.removeprefix(MODEL): weight for name, weight in (state_dict or self.state_dict()).items()}
        self.model.save_pretrained(save_directory, state_dict=weights)
        write_surroundings(save_directory, self.model.config, self.processor)

    def _validate_peft_config(self, peft_config: Any) -> None:
        raise ValueError(
            "adapters of rocket policies are made by `rocket-hf adapt`, and published by `rocket-hf publish`"
        )


def for_robot(model: RocketForActionPrediction, config: LeRobotRocketConfig) -> RocketForActionPrediction:
    """The base for the dataset's robot. Layers that have to be new are new."""
    names = ("cameras", "state_dim", "action_dim", "chunk_size", "state_normalization", "action_normalization")
    robot = {name: getattr(config, name) for name in names}
    same = RocketConfig(policy_config=model.config.policy_config, **robot).to_dict()
    ours = model.config.to_dict()
    return model if all(same[name] == ours[name] for name in names) else model.for_robot(robot)


def processor_for(
    config: LeRobotRocketConfig, robot: RocketConfig, base: RocketProcessor | None, dataset_stats: dict[str, Any] | None
) -> RocketProcessor:
    """The base's own, with the dataset's statistics where it is trained on one."""
    if base is None:
        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
        return RocketProcessor.for_config(robot, tokenizer, statistics_from(dataset_stats))
    if dataset_stats is None:
        return base
    kept = {name: getattr(base, name) for name in ("image_size", "resize", "prompt_template", "max_prompt_length")}
    return RocketProcessor.for_config(robot, base.tokenizer, statistics_from(dataset_stats), **kept)


def statistics_from(dataset_stats: dict[str, Any] | None) -> dict[str, Statistics]:
    """Of state and action, from lerobot's statistics of a dataset."""
    stats = dataset_stats or {}
    return {
        part: {
            key: [float(number) for number in values]
            for key, values in stats.get(feature, {}).items()
            if key in NEUTRAL
        }
        for part, feature in (("state", STATE), ("action", ACTION))
    }
