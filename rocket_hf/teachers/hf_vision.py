"""Teacher around any vision transformer of transformers: DINOv2, DINOv3, SigLIP, SigLIP 2, CLIP, ViT, Depth Anything.

The code has no special cases by family name: it relies on the model's configuration. What the configuration does not
state is measured once when the teacher is built: how many tokens precede the patches, and whether images of other sizes
are accepted. Each camera is encoded separately.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rocket_hf.errors import UserError

from .frozen import FrozenTeacher
from .teacher import Grid, Resolution, TeacherCard

TRIAL_GRID = (3, 4)  # patches of the image with which a new teacher is probed


class HFVisionTeacher(FrozenTeacher):
    """Vision transformer of transformers as a teacher. Layer i is the residual stream after block i."""

    module: PreTrainedModel

    def __init__(
        self, module: PreTrainedModel, card: TeacherCard, resolution: Resolution = "camera", compile: bool = False
    ):
        super().__init__(module, card, resolution)
        encoder_name, self.list_name = find_blocks(module, card)
        self.encoder = module.get_submodule(encoder_name)
        blocks = self.encoder.get_submodule(self.list_name).children()
        self.blocks = [compile_block(block) if compile else block for block in blocks]
        accepted = inspect.signature(module.forward).parameters
        self.takes_patches = "spatial_shapes" in accepted  # SigLIP 2 in its variant for any aspect ratio
        self.has_interpolation_flag = "interpolate_pos_encoding" in accepted
        self.accepts_any_size, self.prefix_tokens = self.probe_input()

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        size, native = super().input_size(height, width), self.native_size
        if not self.accepts_any_size and size != native:
            raise UserError(
                f"{self.card.name} accepts only images of {native[1]} x {native[0]} pixels, not of {size[1]} x "
                f'{size[0]}: choose resolution="teacher" and square cameras, or another teacher'
            )
        return size

    @property
    def native_size(self) -> tuple[int, int]:
        side = self.card.image_size // self.card.patch_size * self.card.patch_size
        return side, side

    def scene_features(self, pixels: Tensor, layers: list[int]) -> dict[int, Tensor]:
        frames = pixels.flatten(0, 1)
        tokens, features = self.token_count(frames), {}

        def make_hook(number: int) -> Any:
            def keep_output(block: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
                stream = output if isinstance(output, Tensor) else output[0]
                assert stream.shape[1] == tokens, "the number of tokens differs from that of the probe"
                features[number] = stream[:, self.prefix_tokens :].unflatten(0, pixels.shape[:2])

            return keep_output

        hooks = [self.blocks[number - 1].register_forward_hook(make_hook(number)) for number in layers]
        try:
            self.run_blocks(frames, max(layers, default=0))
        finally:
            for hook in hooks:
                hook.remove()
        return features

    def token_count(self, frames: Tensor) -> int:
        rows, columns = self.patch_grid(frames)
        return self.prefix_tokens + rows * columns

    def patch_grid(self, frames: Tensor) -> Grid:
        return frames.shape[-2] // self.card.patch_size, frames.shape[-1] // self.card.patch_size

    def run_blocks(self, frames: Tensor, count: int) -> Tensor:
        """Run the model's own forward with its first `count` blocks. Return its last hidden state (N, tokens, C)."""
        inputs: dict[str, Any] = {"pixel_values": frames}
        if self.takes_patches:
            inputs = self.split_into_patches(frames)
        elif self.has_interpolation_flag:
            inputs["interpolate_pos_encoding"] = frames.shape[-2:] != self.native_size
        with self.first_blocks(count):
            return self.module(**inputs).last_hidden_state

    @contextmanager
    def first_blocks(self, count: int) -> Iterator[None]:
        """Reduce the model to its first blocks within the context, so that it stops at the deepest requested layer."""
        all_blocks = self.encoder.get_submodule(self.list_name)
        setattr(self.encoder, self.list_name, nn.ModuleList(self.blocks[:count]))
        try:
            yield
        finally:
            setattr(self.encoder, self.list_name, all_blocks)

    def split_into_patches(self, frames: Tensor) -> dict[str, Tensor]:
        (rows, columns), patch = self.patch_grid(frames), self.card.patch_size
        # (N, 3, rows, patch, columns, patch)
        patches = frames.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))
        return {
            "pixel_values": patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2),
            "pixel_attention_mask": torch.ones(len(frames), rows * columns, dtype=torch.long, device=frames.device),
            "spatial_shapes": torch.tensor([[rows, columns]] * len(frames)),
        }

    @torch.no_grad()
    def probe_input(self) -> tuple[bool, int]:
        """Return whether the model accepts images of any size, and the number of tokens before the patches."""
        height, width = (side * self.card.patch_size for side in TRIAL_GRID)
        try:
            return True, self.count_prefix_tokens((height, width))
        except (ValueError, RuntimeError):  # an error with another cause than the size is raised again by the next call
            return False, self.count_prefix_tokens(self.native_size)

    def count_prefix_tokens(self, size: tuple[int, int]) -> int:
        """Count the tokens before the patches: changing two patches must change exactly the tokens at their places."""
        patch, columns = self.card.patch_size, size[1] // self.card.patch_size
        frames = torch.zeros(2, 3, *size, device=self.device, dtype=self.dtype)
        frames[1, :, :patch, patch : 2 * patch] = frames[1, :, patch : 2 * patch, :patch] = 1
        tokens = self.run_blocks(frames, 0)
        prefix = tokens.shape[1] - columns * (size[0] // patch) if tokens.ndim == 3 else -1
        changed = (tokens[0] != tokens[1]).flatten(1).any(dim=1).nonzero().flatten().tolist()
        if prefix < 0 or tokens.shape[-1] != self.card.width or changed != [prefix + 1, prefix + columns]:
            raise UserError(
                f"{self.card.name} ({self.module.config.model_type}) cannot be a teacher: its tokens are not "
                "class and register tokens followed by one token for each patch, row by row"
            )
        return prefix


def compile_block(block: nn.Module) -> nn.Module:
    """Wrap a block in a compiled module, so that the hooks on its output stay outside of the compiled code."""
    return cast(nn.Module, torch.compile(block))


def find_blocks(module: nn.Module, card: TeacherCard) -> tuple[str, str]:
    """Return the name of the encoder and of its list of blocks: the only ModuleList whose length is the depth."""
    lists = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    candidates = [name for name, part in lists.items() if len(part) == card.depth]
    outermost = [name for name in candidates if not any(name.startswith(f"{other}.") for other in candidates)]
    if len(outermost) != 1:
        raise UserError(
            f"{card.name} cannot be a teacher: it has {len(outermost)} lists of {card.depth} blocks, expected one"
        )
    encoder_name, _, list_name = outermost[0].rpartition(".")
    return encoder_name, list_name
