"""Processor, saved beside a policy's weights: converts observations to model inputs, and actions to robot units."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin

from .configuration_openvla import OpenVLAPolicyConfig  # noqa: F401  (imported so that the file is published: see __init__.py)
from .configuration_pi0 import Pi0Config  # noqa: F401
from .configuration_rocket import RocketConfig
from .configuration_smolvla import SmolVLAConfig  # noqa: F401
from .errors import UserError
from .finite_checks import check_image_range
from .image_resizing import INTERPOLATIONS, RESIZE_METHODS, is_float_on_device, resize_images, to_unit_batch
from .normalization import Normalizer, Statistics, with_positive_deviations
from .policy_interface import Batch  # noqa: F401
from .processor_settings import check_kinds
from .prompts import PromptTemplate
from .size_limits import check_size
from .stored_weights import find_file
from .strict_config import suggest_name

TOKENIZER_FILE = "tokenizer.json"
CPU = torch.device("cpu")
# Settings that belong to a policy's weights: a processor for another robot takes them over from the policy's processor.
POLICY_SETTINGS = ("resize", "interpolation", "prompt_template", "task_text", "max_prompt_length")


class RocketProcessor(ProcessorMixin):
    """Processor that converts a robot's observations to inputs of its policy, and the policy's actions to robot units.

    Args:
        tokenizer: Tokenizer of the language model.
        cameras: Names of the cameras, in the order in which the policy reads them.
        image_size: Side of the policy's square images, in pixels.
        resize: How images are resized: "letterbox" keeps the aspect ratio and centers the image between black bars,
            "letterbox-top-left" puts the bars on the top and on the left, "stretch" changes the aspect ratio.
        interpolation: "bilinear", or "bicubic" as in Pillow, which the public code of OpenVLA uses.
        prompt_template: Prompt with the placeholders {task}, {task_lower} and {state}.
        task_text: "cleaned" strips the task and replaces underscores and line breaks by spaces, "unchanged" inserts it
            as it is.
        max_prompt_length: Number of tokens to which prompts are padded. A longer prompt is an error.
        state_dim: Length of the robot's state.
        action_dim: Length of the robot's action.
        state_normalization: "identity", "mean_std", "min_max" or "quantile" (see `RocketConfig`).
        action_normalization: Normalization of the actions, in the same way.
        clip_normalized: Whether normalized states and actions are clipped to [-1, 1] (only "min_max" and "quantile").
        statistics: Statistics of "state" and "action" by name ("mean", "std", "min", "max", "q01", "q99"), each with
            one value per dimension. The optional "mask" is False for dimensions that are not normalized.

    Example:
        ```python
        import numpy as np

        from rocket_hf import RocketConfig, RocketProcessor
        from rocket_hf.tiny import character_tokenizer, tiny_statistics

        config = RocketConfig(cameras=["front"], state_dim=6, action_dim=6)
        processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config))

        frame = np.zeros((480, 640, 3), dtype=np.uint8)
        inputs = processor(images={"front": frame}, task="open the drawer", state=np.zeros(6))
        print({name: tuple(value.shape) for name, value in inputs.items()})
        # With a policy: actions = processor.unnormalize_actions(policy.predict_action_chunk(**inputs))
        ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        cameras: Sequence[str] = ("image",),
        image_size: int = 224,
        resize: Literal["letterbox", "letterbox-top-left", "stretch"] = "letterbox",
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        prompt_template: str = "{task}\n",
        task_text: Literal["cleaned", "unchanged"] = "cleaned",
        max_prompt_length: int = 48,
        state_dim: int = 8,
        action_dim: int = 7,
        state_normalization: str = "mean_std",
        action_normalization: str = "mean_std",
        clip_normalized: bool = False,
        statistics: dict[str, Statistics] | None = None,
    ):
        super().__init__(tokenizer)
        texts = {
            "resize": resize,
            "interpolation": interpolation,
            "prompt_template": prompt_template,
            "task_text": task_text,
            "state_normalization": state_normalization,
            "action_normalization": action_normalization,
        }
        check_kinds(texts, cameras, statistics)
        if resize not in RESIZE_METHODS:
            raise UserError(f"resize must be one of {', '.join(RESIZE_METHODS)}, got {resize!r}")
        if interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}")
        sizes = {"image_size": image_size, "max_prompt_length": max_prompt_length}
        for name, size in (sizes | {"state_dim": state_dim, "action_dim": action_dim}).items():
            check_size("RocketProcessor", name, size)
        self.cameras, self.image_size = list(cameras), image_size
        self.resize, self.interpolation = resize, interpolation
        self.prompt_template, self.task_text, self.max_prompt_length = prompt_template, task_text, max_prompt_length
        self._prompt = PromptTemplate(prompt_template, task_text)
        self.state_dim, self.action_dim = state_dim, action_dim
        self.state_normalization, self.action_normalization = state_normalization, action_normalization
        self.clip_normalized, self.statistics = clip_normalized, statistics or {}
        state, action = (self.statistics.get(name, {}) for name in ("state", "action"))
        self._state = Normalizer("state", state_dim, state_normalization, state, clip_normalized)
        self._action = Normalizer("action", action_dim, action_normalization, action, clip_normalized)

    @classmethod
    def from_pretrained(cls, *args: Any, trust_remote_code: bool = False, **kwargs: Any) -> Self:
        """Load a processor from a folder or Hub repository.

        The arguments are those of transformers. `trust_remote_code` has no effect, because this class is already loaded
        and the tokenizer has no code.
        """
        return super().from_pretrained(*args, trust_remote_code=False, **kwargs)

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Create a processor from the content of processor_config.json, as transformers does when it loads one."""
        if "clip_normalized" not in processor_dict:  # of version 0.1.0, whose deviations may be 0
            statistics = processor_dict.get("statistics") or {}
            if all(isinstance(values, dict) for values in statistics.values()):
                processor_dict = processor_dict | {"statistics": with_positive_deviations(statistics)}
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(cls, source: str, *_: Any, **kwargs: Any) -> list[PreTrainedTokenizerBase]:
        """Load the tokenizer by class from tokenizer.json: AutoTokenizer could execute code that the folder names."""
        kwargs.pop("trust_remote_code", None)
        try:
            return [PreTrainedTokenizerFast.from_pretrained(source, **kwargs)]
        except Exception as error:  # the library tokenizers raises plain exceptions
            if type(error) is not Exception and not isinstance(error, ImportError | OSError | TypeError | ValueError):
                raise
            if find_file(source, TOKENIZER_FILE, kwargs) is None:
                raise UserError(f"{source} has no {TOKENIZER_FILE}: download or export the policy again") from None
            reason = error.__context__ or error  # transformers asks for protobuf, whatever is wrong with the files
            raise UserError(f"tokenizer of {source} cannot be loaded ({reason}): download the policy again") from error

    @classmethod
    def for_config(
        cls, config: RocketConfig, tokenizer: PreTrainedTokenizerBase, statistics: dict[str, Statistics], **changes: Any
    ) -> Self:
        """Create the processor of a policy.

        Args:
            config: Configuration of the policy. Image size, resizing and prompt are those of its backbone.
            tokenizer: Tokenizer of the backbone's language model.
            statistics: Statistics of "state" and "action".
            **changes: Other values of constructor arguments.
        """
        policy = config.policy_config
        settings = {
            "cameras": config.cameras,
            "image_size": policy.image_size,
            "resize": policy.resize,
            "interpolation": policy.interpolation,
            "prompt_template": policy.prompt_template,
            "task_text": policy.task_text,
            "max_prompt_length": policy.max_prompt_length,
            "state_dim": config.state_dim,
            "action_dim": config.action_dim,
            "state_normalization": config.state_normalization,
            "action_normalization": config.action_normalization,
            "clip_normalized": config.clip_normalized,
        }
        return cls(tokenizer, statistics=statistics, **(settings | changes))

    def __call__(
        self,
        images: Mapping[str, Any],
        task: str | Sequence[str],
        state: Any = None,
        actions: Any = None,
        action_is_pad: Any = None,
        camera_mask: Mapping[str, Any] | None = None,
        state_mask: Any = None,
    ) -> BatchFeature:
        """Convert observations to inputs of the policy.

        This composes the two steps of preprocessing, `prepare_images` and `encode_state_and_text`. Training runs them
        in different processes: its loader workers call the second, the training process the first.

        Args:
            images: Image of each camera by name, uint8 or float in [0, 1]: a PIL image, (H, W, 3), (3, H, W) or a batch
                of these; None for a missing camera.
            task: One instruction for all samples, or one per sample.
            state: (S,) or (B, S) in robot units; None for policies that do not read it.
            actions: (chunk, A) or (B, chunk, A) in robot units, for training.
            action_is_pad: (chunk,) or (B, chunk), whether an action is after the end of its episode.
            camera_mask: For each camera by name, whether it is present in each sample (default: yes, unless its image
                is None).
            state_mask: (S,) or (B, S), False on dimensions that a robot lacks (default: it has all). The policy reads 0
                there, as it did for datasets without these dimensions when it was trained on several robots.

        Returns:
            A `Batch` on the device of the images, which `forward` and `predict_action_chunk` take as keyword arguments.
        """
        check_image_range({name: image for name, image in images.items() if is_float_on_device(image)})
        pixels, present = self.prepare_images(images, camera_mask or {})
        device = pixels.device
        tasks = [task] * len(pixels) if isinstance(task, str) else list(task)
        state = None if state is None else with_batch_dimension(state, 2, device)
        actions = None if actions is None else with_batch_dimension(actions, 3, device)
        action_is_pad = None if action_is_pad is None else with_batch_dimension(action_is_pad, 2, device).bool()
        state_mask = None if state_mask is None else with_batch_dimension(state_mask, 2, device).bool()
        for name, value in {"task": tasks, "state": state, "actions": actions, "action_is_pad": action_is_pad}.items():
            if value is not None:
                check_sample_count(name, value, len(pixels))
        batch = {"images": pixels, "camera_mask": present}
        batch |= self.encode_state_and_text(tasks, state, actions, device, state_mask)
        if action_is_pad is not None:
            batch["action_is_pad"] = action_is_pad
        return BatchFeature(batch)

    def encode_state_and_text(
        self,
        tasks: Sequence[str],
        state: Tensor | None,
        actions: Tensor | None = None,
        device: torch.device = CPU,
        state_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Normalize state and actions, and tokenize the prompts.

        The state is normalized first, because a prompt may contain its bins.

        Args:
            tasks: Instruction of each sample.
            state: (B, S) in robot units, or None.
            actions: (B, chunk, A) in robot units, or None.
            device: Device of the tokens.
            state_mask: (B, S), or (1, S) for all samples, False on state dimensions that the robot lacks, or None.

        Returns:
            The keys "input_ids" and "attention_mask" of a `Batch`, and "state" and "actions" if given.
        """
        encoded = {} if state is None else {"state": self.normalize_state(state)}
        if state is not None and state_mask is not None:
            encoded["state"] = encoded["state"].where(state_mask, 0)
        encoded |= self.encode_text(tasks, encoded.get("state"), device)
        if actions is not None:
            encoded["actions"] = self.normalize_actions(actions)
        return encoded

    def encode_text(
        self, tasks: Sequence[str], normalized_state: Tensor | None, device: torch.device = CPU
    ) -> dict[str, Tensor]:
        """Return the tokens of each task's prompt: `input_ids` and `attention_mask`, (B, max_prompt_length)."""
        return self.tokenize(self.prompts(tasks, normalized_state), device)

    def normalize_state(self, state: Tensor) -> Tensor:
        """Normalize states (..., S) from robot units, and clip them as `clip_state` does."""
        return self._state.normalize(state)

    def normalize_actions(self, actions: Tensor) -> Tensor:
        """Normalize actions (..., A) from robot units, and clip them as `clip_actions` does."""
        return self._action.normalize(actions)

    def clip_state(self, normalized: Tensor) -> Tensor:
        """Clip normalized states (..., S) to [-1, 1] if the processor does so (`clip_normalized`)."""
        return self._state.clip(normalized)

    def clip_actions(self, normalized: Tensor) -> Tensor:
        """Clip normalized actions (..., A) to [-1, 1] if the processor does so (`clip_normalized`)."""
        return self._action.clip(normalized)

    def unnormalize_actions(self, actions: Tensor) -> Tensor:
        """Convert normalized actions (..., A), which a policy predicts, to robot units."""
        return self._action.unnormalize(actions)

    def prepare_images(self, images: Mapping[str, Any], masks: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Resize the images of all cameras and stack them in the policy's order.

        Args:
            images: Image of each camera by name, as in `__call__`.
            masks: For each camera by name, whether it is present in each sample (default: yes, unless its image is
                None).

        Returns:
            Images (B, V, 3, image_size, image_size) in [0, 1], black where the camera is missing, and a mask of the
            cameras that are present, (B, V).
        """
        for name in [*images, *masks]:
            if name not in self.cameras:
                raise UserError(f"this policy has no camera {name!r}: {suggest_name(name, self.cameras)}")
        if missing := [name for name in self.cameras if name not in images]:
            raise UserError(
                f"the observation lacks the camera {missing[0]!r}: pass its image, or None if it is missing"
            )
        resized = {
            name: resize_images(to_unit_batch(name, image), self.image_size, self.resize, self.interpolation)
            for name, image in images.items()
            if image is not None
        }
        if not resized:
            raise UserError(f"all cameras are None: pass an image of at least one of {', '.join(self.cameras)}")
        counts = {name: len(image) for name, image in resized.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
            raise UserError(f"the cameras have different numbers of images: {listed}; pass one per camera and sample")
        blank = torch.zeros_like(next(iter(resized.values())))
        pixels = torch.stack([resized.get(name, blank) for name in self.cameras], dim=1)
        always_present = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
        all_masks = {
            name: torch.as_tensor(masks.get(name, always_present), device=pixels.device) for name in self.cameras
        }
        for name, mask in all_masks.items():
            check_sample_count(f"the mask of camera {name!r}", mask.reshape(-1), len(pixels))
        presence = [mask.bool().reshape(-1) & (name in resized) for name, mask in all_masks.items()]
        present = torch.stack(presence, dim=1)
        return pixels * present[:, :, None, None, None], present

    def prompts(self, tasks: Sequence[str], state: Tensor | None) -> list[str]:
        """Fill the prompt template with each task, and with the bins of the normalized state if it contains them."""
        return self._prompt.fill(tasks, state)

    def tokenize(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` of prompts, padded to (B, max_prompt_length)."""
        if self.tokenizer.pad_token is None:
            raise UserError("the tokenizer has no padding token: set pad_token in tokenizer_config.json")
        encoded = self.tokenizer(prompts, padding="max_length", max_length=self.max_prompt_length, padding_side="right")
        length, longest = max((len(row), prompt) for row, prompt in zip(encoded["input_ids"], prompts, strict=True))
        if length > self.max_prompt_length:
            raise UserError(
                f"a prompt has {length} tokens, but max_prompt_length is {self.max_prompt_length}: shorten the task "
                f"({longest[:60]!r} ...) or increase max_prompt_length"
            )
        return {key: torch.tensor(encoded[key], device=device) for key in ("input_ids", "attention_mask")}


def check_sample_count(name: str, value: Sequence[Any] | Tensor, count: int) -> None:
    if len(value) != count:
        raise UserError(f"{name} has {len(value)} samples, but there are images of {count}: pass one per sample")


def with_batch_dimension(value: Any, dims: int, device: torch.device) -> Tensor:
    """Convert a value to a tensor of `dims` dimensions, adding the batch dimension; float32 unless it is boolean."""
    tensor = torch.as_tensor(value, device=device)
    tensor = tensor if tensor.dtype == torch.bool else tensor.float()
    return tensor[None] if tensor.dim() == dims - 1 else tensor
