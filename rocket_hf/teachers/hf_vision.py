"""Any vision transformer of transformers as a teacher: DINOv2, DINOv3, SigLIP, SigLIP 2, CLIP, ViT, Depth Anything's.

Nothing is known of a family by name but what its configuration says. What it does not say is tried out once when the
teacher is made: where the patches stand among the tokens, and whether pictures of another size are taken.
Each camera is seen on its own.
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

TRIAL_GRID = (3, 4)


class HFVisionTeacher(FrozenTeacher):
    module: PreTrainedModel

    def __init__(
        self, module: PreTrainedModel, card: TeacherCard, resolution: Resolution = "camera", compile: bool = False
    ):
        super().__init__(module, card, resolution)
        parent, self.list_name = find_blocks(module, card)
        self.parent = module.get_submodule(parent)
        blocks = self.parent.get_submodule(self.list_name).children()
        self.blocks = [compiled(block) if compile else block for block in blocks]
        accepted = inspect.signature(module.forward).parameters
        self.takes_patches = "spatial_shapes" in accepted  # SigLIP 2's tower for pictures of any aspect
        self.told_to_interpolate = "interpolate_pos_encoding" in accepted
        self.any_size, self.prefix_tokens = self.try_out()

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        size, only = super().input_size(height, width), self.own_size
        if not self.any_size and size != only:
            raise UserError(
                f"{self.card.name} takes pictures of {only[1]} x {only[0]} pixels alone, not of {size[1]} x {size[0]}: "
                'choose resolution="teacher" and square cameras, or another teacher'
            )
        return size

    @property
    def own_size(self) -> tuple[int, int]:
        side = self.card.image_size // self.card.patch_size * self.card.patch_size
        return side, side

    def scene_features(self, pixels: Tensor, layers: list[int]) -> dict[int, Tensor]:
        frames = pixels.flatten(0, 1)
        tokens, kept = self.tokens_of(frames), {}

        def keeper(number: int) -> Any:
            def keep(block: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
                stream = output if isinstance(output, Tensor) else output[0]
                assert stream.shape[1] == tokens, "the trial saw one more or less"
                kept[number] = stream[:, self.prefix_tokens :].unflatten(0, pixels.shape[:2])

            return keep

        hooks = [self.blocks[number - 1].register_forward_hook(keeper(number)) for number in layers]
        try:
            self.run(frames, max(layers, default=0))
        finally:
            for hook in hooks:
                hook.remove()
        return kept

    def tokens_of(self, frames: Tensor) -> int:
        rows, columns = self.patches(frames)
        return self.prefix_tokens + rows * columns

    def patches(self, frames: Tensor) -> Grid:
        return frames.shape[-2] // self.card.patch_size, frames.shape[-1] // self.card.patch_size

    def run(self, frames: Tensor, blocks: int) -> Tensor:
        """The model's own forward with so many of its blocks: its last hidden state, (N, tokens, C)."""
        inputs: dict[str, Any] = {"pixel_values": frames}
        if self.takes_patches:
            inputs = self.cut_into_patches(frames)
        elif self.told_to_interpolate:
            inputs["interpolate_pos_encoding"] = frames.shape[-2:] != self.own_size
        with self.only(blocks):
            return self.module(**inputs).last_hidden_state

    @contextmanager
    def only(self, count: int) -> Iterator[None]:
        """While this lasts the model has its first blocks alone, so that it stops at the deepest layer asked for."""
        every = self.parent.get_submodule(self.list_name)
        setattr(self.parent, self.list_name, nn.ModuleList(self.blocks[:count]))
        try:
            yield
        finally:
            setattr(self.parent, self.list_name, every)

    def cut_into_patches(self, frames: Tensor) -> dict[str, Tensor]:
        (rows, columns), patch = self.patches(frames), self.card.patch_size
        cut = frames.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))  # (N, 3, rows, patch, columns, patch)
        return {
            "pixel_values": cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2),
            "pixel_attention_mask": torch.ones(len(frames), rows * columns, dtype=torch.long, device=frames.device),
            "spatial_shapes": torch.tensor([[rows, columns]] * len(frames)),
        }

    @torch.no_grad()
    def try_out(self) -> tuple[bool, int]:
        """Whether it takes pictures of any size, and the number of tokens before the patches."""
        height, width = (side * self.card.patch_size for side in TRIAL_GRID)
        try:
            return True, self.count_prefix((height, width))
        except (ValueError, RuntimeError):  # whatever is wrong beside the size shows once more, and ends it, below
            return False, self.count_prefix(self.own_size)

    def count_prefix(self, size: tuple[int, int]) -> int:
        """Two patches of a picture are changed, and before the first block so must be two tokens, at their places."""
        patch, columns = self.card.patch_size, size[1] // self.card.patch_size
        frames = torch.zeros(2, 3, *size, device=self.device, dtype=self.dtype)
        frames[1, :, :patch, patch : 2 * patch] = frames[1, :, patch : 2 * patch, :patch] = 1
        tokens = self.run(frames, 0)
        prefix = tokens.shape[1] - columns * (size[0] // patch) if tokens.ndim == 3 else -1
        changed = (tokens[0] != tokens[1]).flatten(1).any(dim=1).nonzero().flatten().tolist()
        if prefix < 0 or tokens.shape[-1] != self.card.width or changed != [prefix + 1, prefix + columns]:
            raise UserError(
                f"{self.card.name} ({self.module.config.model_type}) cannot be a teacher: its tokens are not "
                "class and register tokens followed by one token for each patch, row by row"
            )
        return prefix


def compiled(block: nn.Module) -> nn.Module:
    """A module around it, so that what keeps its output stays outside of what is compiled."""
    return cast(nn.Module, torch.compile(block))


def find_blocks(module: nn.Module, card: TeacherCard) -> tuple[str, str]:
    """The names of the encoder and of its list of blocks: the one list of modules as long as the depth."""
    named = {name: part for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}
    found = [name for name, part in named.items() if len(part) == card.depth]
    outermost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outermost) != 1:
        raise UserError(f"{card.name} cannot be a teacher: {len(outermost)} of its parts are lists of its blocks")
    parent, _, name = outermost[0].rpartition(".")
    return parent, name
