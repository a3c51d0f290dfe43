"""ROCKET-2 as its checkpoints lay it out: timm's encoders, torch's encoder layers, attention token by token.

It is slow and plain, and shares no code with ours.
"""

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEYS = ("forward back left right inventory sprint sneak jump attack use "
        + " ".join(f"hotbar_{n}" for n in range(1, 10))).split()  # fmt: skip
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
TINY_EYES = {"img_size": 32, "embed_dim": 64, "depth": 3, "num_heads": 1}


def holder(**modules: nn.Module) -> nn.Module:
    """A module that only has parts."""
    made = nn.Module()
    for name, module in modules.items():
        made.add_module(name, module)
    return made


def eyes(name: str, channels: int, sizes: dict) -> nn.Module:
    return timm.create_model(name, pretrained=False, features_only=True, in_chans=channels, **sizes)


def attention(width: int, heads: int, window: int) -> nn.Module:
    made = holder(
        q_layer=nn.Linear(width, width),
        k_layer=nn.Linear(width, width, bias=False),
        v_layer=nn.Linear(width, width, bias=False),
        proj_layer=nn.Linear(width, width),
        r_layer=nn.Linear(width, 10 * heads),
    )
    made.b_nd = nn.Parameter(torch.randn(10, window))
    return made


class Published(nn.Module):
    def __init__(self, width=32, heads=2, layers=2, steps=3, views=3, rgb=TINY_EYES, mask=TINY_EYES):
        super().__init__()
        self.heads, self.views, self.window = heads, views, steps * (views + 2)
        self.view_backbone = eyes("vit_base_patch16_224.dino", 3, rgb)
        self.mask_backbone = eyes("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 1, mask)
        rgb_width, mask_width = (e.model.embed_dim for e in (self.view_backbone, self.mask_backbone))
        self.updim_obs = nn.Conv2d(rgb_width, width, 1, bias=False)
        self.updim_cross = nn.Conv2d(rgb_width + mask_width, width, 1, bias=False)
        self.view_cls_tokens = nn.Parameter(torch.randn(1, views, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.1, batch_first=True)
        self.view_resampler = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.interaction = nn.Embedding(10, width)
        self.dropout_embedding = nn.Parameter(torch.randn(1, 1, width))
        binary = nn.ModuleDict({f"act_{key}": nn.Embedding(2, width) for key in KEYS})
        self.action_embedding_layer = holder(camera_layer=nn.Linear(2, width), binary_layers=binary)
        self.recurrent = holder(blocks=nn.ModuleList(self.block(width) for _ in range(layers)))
        self.lastlayer = holder(norm=nn.LayerNorm(width), layer=nn.Linear(width, width, bias=False))
        self.final_ln = nn.LayerNorm(width)
        self.aux_vis_head = nn.Linear(width, 7)
        heads_of = {"buttons": 8641, "camera": 121}
        self.pi_head = holder(**{name: holder(linear_layer=nn.Linear(width, n)) for name, n in heads_of.items()})
        self.value_head = holder(linear=nn.Linear(width, 1), normalizer=nn.Module())
        for name, shape in {"running_mean": (1,), "running_mean_sq": (1,), "debiasing_term": ()}.items():
            parameter = nn.Parameter(torch.zeros(shape), requires_grad=False)
            self.value_head.normalizer.register_parameter(name, parameter)
        self.view_backbone.requires_grad_(False)

    def block(self, width: int) -> nn.Module:
        return holder(
            pre_r_ln=nn.LayerNorm(width),
            r=holder(orc_block=attention(width, self.heads, self.window)),
            mlp0=holder(norm=nn.LayerNorm(width), layer=nn.Linear(width, 4 * width, bias=False)),
            mlp1=holder(layer=nn.Linear(4 * width, width)),
        )

    def look(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255
        return self.view_backbone((pixels - MEAN[:, None, None]) / DEVIATION[:, None, None])[-1]

    def forward(self, images, goal_images, goal_masks, interactions, buttons, camera) -> dict[str, Tensor]:
        """One goal for each of the steps (T, ...) of one episode; the previous action as the game tells it."""
        agent = self.updim_obs(self.look(images))
        shown = torch.cat([self.look(goal_images), self.mask_backbone(goal_masks[:, None].float())[-1]], dim=1)
        patches = [maps.flatten(2).transpose(1, 2) for maps in (agent, self.updim_cross(shown))]
        sequence = torch.cat([self.view_cls_tokens.expand(len(images), -1, -1), *patches], dim=1)
        views = self.view_resampler(sequence)[:, : self.views]
        embedded = self.action_embedding_layer
        previous = embedded.camera_layer(camera)
        for key in KEYS:
            previous = previous + embedded.binary_layers[f"act_{key}"](buttons[key])
        tokens = torch.cat([views, self.interaction(interactions + 1)[:, None], previous[:, None]], dim=1)
        hidden = self.remember(tokens.flatten(0, 1)).unflatten(0, (len(images), -1))
        told = self.aux_vis_head(hidden[:, -3])
        acts = {name: getattr(self.pi_head, name).linear_layer(hidden[:, -1]) for name in ("buttons", "camera")}
        return acts | {"visibility": told[:, 0:1], "point": told[:, 1:3], "box": told[:, 3:7]}

    def remember(self, x: Tensor) -> Tensor:
        for block in self.recurrent.blocks:
            x = block.pre_r_ln(x)
            x = x + self.attend(block.r.orc_block, x)
            x = x + block.mlp1.layer(F.relu(block.mlp0.layer(block.mlp0.norm(x))))
        x = F.relu(self.lastlayer.layer(self.lastlayer.norm(F.relu(x))))
        return self.final_ln(x)

    def attend(self, a: nn.Module, x: Tensor) -> Tensor:
        rows = []
        for now in range(len(x)):
            seen = x[max(0, now - self.window + 1) : now + 1]
            distances = torch.arange(len(seen)).flip(0)
            parts = []
            for h in range(self.heads):
                size = x.shape[1] // self.heads
                own = slice(h * size, (h + 1) * size)
                scores = a.k_layer(seen)[:, own] @ a.q_layer(x[now])[own] / size
                scores = scores + a.r_layer(x[now])[10 * h : 10 * (h + 1)] @ a.b_nd[:, distances]
                parts.append(scores.softmax(dim=0) @ a.v_layer(seen)[:, own])
            rows.append(a.proj_layer(torch.cat(parts)))
        return torch.stack(rows)
