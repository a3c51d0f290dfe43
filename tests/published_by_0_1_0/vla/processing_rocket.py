"""Observations to tensors, and actions back to robot units. Saved beside the weights, with tokenizer and statistics.

inputs = processor(images={"image": frame}, task="open the drawer", state=joints)
actions = processor.unnormalize_actions(model.predict_action_chunk(**inputs))
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from .configuration_openvla import OpenVLAPolicyConfig  # noqa: F401  (named here so that it is shipped: see the package)
from .configuration_pi0 import Pi0Config  # noqa: F401
from .configuration_rocket import RocketConfig
from .configuration_smolvla import SmolVLAConfig  # noqa: F401
from .contract import Batch  # noqa: F401
from .normalization import Normalizer, Statistics
from .strict_config import nearest

STATE_BINS = 256  # over [-1, 1], for a state that is written into the prompt


class RocketProcessor(ProcessorMixin):
    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        cameras: Sequence[str] = ("image",),
        image_size: int = 224,
        resize: Literal["letterbox", "letterbox-top-left", "stretch"] = "letterbox",
        prompt_template: str = "{task}\n",
        max_prompt_length: int = 48,
        state_dim: int = 8,
        action_dim: int = 7,
        state_normalization: str = "mean_std",
        action_normalization: str = "mean_std",
        statistics: dict[str, Statistics] | None = None,
    ):
        super().__init__(tokenizer)
        if resize not in RESIZES:
            raise ValueError(f"resize must be one of {', '.join(RESIZES)}, got {resize!r}")
        self.cameras, self.image_size, self.resize = list(cameras), image_size, resize
        self.prompt_template, self.max_prompt_length = prompt_template, max_prompt_length
        self.state_dim, self.action_dim = state_dim, action_dim
        self.state_normalization, self.action_normalization = state_normalization, action_normalization
        self.statistics = statistics or {}
        self._state = Normalizer("state", state_dim, state_normalization, self.statistics.get("state", {}))
        self._action = Normalizer("action", action_dim, action_normalization, self.statistics.get("action", {}))

    @classmethod
    def from_pretrained(cls, *args: Any, trust_remote_code: bool = False, **kwargs: Any) -> Self:
        """Like transformers', but whoever has this class is not asked whether to run the code beside the weights."""
        return super().from_pretrained(*args, trust_remote_code=trust_remote_code, **kwargs)

    @classmethod
    def for_config(
        cls, config: RocketConfig, tokenizer: PreTrainedTokenizerBase, statistics: dict[str, Statistics], **changes: Any
    ) -> Self:
        """The processor that belongs to a policy, with the backbone's own prompt; `changes` override."""
        policy = config.policy_config
        settings = {
            "cameras": config.cameras,
            "image_size": policy.image_size,
            "resize": policy.resize,
            "prompt_template": policy.prompt_template,
            "max_prompt_length": policy.max_prompt_length,
            "state_dim": config.state_dim,
            "action_dim": config.action_dim,
            "state_normalization": config.state_normalization,
            "action_normalization": config.action_normalization,
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
    ) -> BatchFeature:
        """A `Batch` (see contract.py), on the device of the images.

        images: by camera name, uint8 or float in [0, 1], a PIL image, (H, W, 3), (3, H, W) or a batch of these; None
            for a camera that is missing. camera_mask: by camera name, for each sample whether the camera is there.
        task: one sentence, or one per sample. state: (S,) or (B, S) in robot units;
            None where the policy does not read it.
        actions: (chunk, A) or (B, chunk, A) in robot units, and action_is_pad of its steps, for training.
        """
        pixels, present = self.prepare_images(images, camera_mask or {})
        device = pixels.device
        tasks = [task] * len(pixels) if isinstance(task, str) else list(task)
        require_samples("task", tasks, len(pixels))
        batch = {"images": pixels, "camera_mask": present}
        if state is not None:
            batch["state"] = self.normalize_state(batched(state, 2, device))
            require_samples("state", batch["state"], len(pixels))
        batch |= self.tokenize(self.prompts(tasks, batch.get("state")), device)
        if actions is not None:
            batch["actions"] = self.normalize_actions(batched(actions, 3, device))
        if action_is_pad is not None:
            batch["action_is_pad"] = batched(action_is_pad, 2, device).bool()
        for what, value in batch.items():
            require_samples(what, value, len(pixels))
        return BatchFeature(batch)

    def normalize_state(self, state: Tensor) -> Tensor:
        """A state (..., S) in robot units, as the policy reads it."""
        return self._state.normalize(state)

    def normalize_actions(self, actions: Tensor) -> Tensor:
        """Actions (..., A) in robot units, as the policy is trained on them."""
        return self._action.normalize(actions)

    def unnormalize_actions(self, actions: Tensor) -> Tensor:
        """Actions (..., A) of the model, in robot units."""
        return self._action.unnormalize(actions)

    def prepare_images(self, images: Mapping[str, Any], masks: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Images (B, V, 3, size, size) in [0, 1] and which of them are there, (B, V)."""
        for name in [*images, *masks]:
            if name not in self.cameras:
                raise ValueError(f"this policy has no camera {name!r}: {nearest(name, self.cameras)}")
        if missing := [name for name in self.cameras if name not in images]:
            raise ValueError(
                f"the observation lacks the camera {missing[0]!r}: pass its image, or None if the camera is not there"
            )
        resize = RESIZES[self.resize]
        resized = {
            name: resize(to_unit_batch(name, image), self.image_size)
            for name, image in images.items()
            if image is not None
        }
        if not resized:
            raise ValueError(f"every camera is None: at least one of {', '.join(self.cameras)} must have an image")
        blank = torch.zeros_like(next(iter(resized.values())))
        pixels = torch.stack([resized.get(name, blank) for name in self.cameras], dim=1)
        there = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
        given = [torch.as_tensor(masks.get(name, there), device=there.device) for name in self.cameras]
        rows = [mask.bool().reshape(-1) & (name in resized) for name, mask in zip(self.cameras, given, strict=True)]
        present = torch.stack(rows, dim=1)
        return pixels * present[:, :, None, None, None], present

    def prompts(self, tasks: Sequence[str], state: Tensor | None) -> list[str]:
        """Each task in one line and, where the template asks for it, the normalised state as numbers of bins."""
        numbers: list[list[int]] = [[] for _ in tasks]
        if "{state}" in self.prompt_template:
            if state is None:
                raise ValueError("this policy reads the state in its prompt: pass the state")
            edges = torch.linspace(-1, 1, STATE_BINS + 1, dtype=torch.float64)[:-1]
            numbers = (torch.bucketize(state.double().cpu(), edges, right=True) - 1).tolist()
        texts = [task.strip().replace("_", " ").replace("\n", " ") for task in tasks]
        return [
            self.prompt_template.format(task=text, task_lower=text.lower(), state=" ".join(map(str, row)))
            for text, row in zip(texts, numbers, strict=True)
        ]

    def tokenize(self, prompts: list[str], device: torch.device) -> dict[str, Tensor]:
        encoded = self.tokenizer(prompts, padding="max_length", max_length=self.max_prompt_length, padding_side="right")
        length, longest = max((len(row), prompt) for row, prompt in zip(encoded["input_ids"], prompts, strict=True))
        if length > self.max_prompt_length:
            raise ValueError(
                f"a prompt has {length} tokens, max_prompt_length is {self.max_prompt_length}: shorten the task "
                f"({longest[:60]!r} ...) or raise max_prompt_length"
            )
        return {key: torch.tensor(encoded[key], device=device) for key in ("input_ids", "attention_mask")}


def require_samples(what: str, value: Sequence[Any] | Tensor, count: int) -> None:
    if len(value) != count:
        raise ValueError(f"{what} has {len(value)} samples, the images have {count}")


def batched(value: Any, dims: int, device: torch.device) -> Tensor:
    """A tensor with its batch dimension, float32 unless boolean."""
    tensor = torch.as_tensor(value, device=device)
    tensor = tensor if tensor.dtype == torch.bool else tensor.float()
    return tensor[None] if tensor.dim() == dims - 1 else tensor


def to_unit_batch(name: str, image: Any) -> Tensor:
    """An image or a batch of them, in any of the accepted forms, to (B, 3, H, W) float in [0, 1]."""
    tensor = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    tensor = tensor[None] if tensor.dim() == 3 else tensor
    if tensor.dim() != 4 or 3 not in (tensor.shape[1], tensor.shape[-1]):
        raise ValueError(f"camera {name!r}: an image must be (H, W, 3) or (3, H, W), got {tuple(tensor.shape)}")
    if tensor.shape[1] != 3:
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point():
        raise ValueError(f"camera {name!r}: an image must be uint8 or float in [0, 1], got {tensor.dtype}")
    if tensor.device.type == "cpu" and not 0 <= float(tensor.min()) <= float(tensor.max()) <= 1 + 1e-3:
        raise ValueError(
            f"camera {name!r}: a float image must lie in [0, 1], got {float(tensor.min()):g} .. {float(tensor.max()):g}"
        )
    return tensor.float()


def stretch(images: Tensor, size: int) -> Tensor:
    """To size x size whatever the aspect ratio, without aliasing."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)


def letterbox(images: Tensor, size: int) -> Tensor:
    """As openpi and lerobot's pi0: keep the aspect ratio, plain bilinear, black bars around the centre."""
    fitted = fit(images, size)
    down, right = size - fitted.shape[-2], size - fitted.shape[-1]
    return F.pad(fitted, (right // 2, right - right // 2, down // 2, down - down // 2))


def letterbox_top_left(images: Tensor, size: int) -> Tensor:
    """As lerobot's SmolVLA: the same, with the bars on the left and on top."""
    fitted = fit(images, size)
    return F.pad(fitted, (size - fitted.shape[-1], 0, size - fitted.shape[-2], 0))


def fit(images: Tensor, size: int) -> Tensor:
    """The longer side to `size`, the aspect ratio kept, plain bilinear."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    ratio = max(height, width) / size
    rows, columns = int(height / ratio), int(width / ratio)
    return F.interpolate(images, size=(rows, columns), mode="bilinear", align_corners=False).clamp(0, 1)


RESIZES = {"letterbox": letterbox, "letterbox-top-left": letterbox_top_left, "stretch": stretch}
