"""Reference implementation of ROCKET-2 with the weight names of its public checkpoints.

It is built from timm's encoders, torch's encoder layers and attention computed token by token. It is slow and shares no
code with rocket_hf, so that tests compare two independent implementations.
"""

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEYS = ("forward back left right inventory sprint sneak jump attack use "
        + " ".join(f"hotbar_{n}" for n in range(1, 10))).split()  # fmt: skip
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
TINY_ENCODER = {"img_size": 32, "embed_dim": 64, "depth": 3, "num_heads": 1}


def module_of(**children: nn.Module) -> nn.Module:
    """Return a module without a forward that has these children."""
    parent = nn.Module()
    for name, child in children.items():
        parent.add_module(name, child)
    return parent


def image_encoder(name: str, channels: int, sizes: dict) -> nn.Module:
    return timm.create_model(name, pretrained=False, features_only=True, in_chans=channels, **sizes)


def attention(width: int, heads: int, window: int) -> nn.Module:
    module = module_of(
        q_layer=nn.Linear(width, width),
        k_layer=nn.Linear(width, width, bias=False),
        v_layer=nn.Linear(width, width, bias=False),
        proj_layer=nn.Linear(width, width),
        r_layer=nn.Linear(width, 10 * heads),
    )
    module.b_nd = nn.Parameter(torch.randn(10, window))
    return module


class ReferenceRocket2(nn.Module):
    def __init__(self, width=32, heads=2, layers=2, steps=3, views=3, rgb=TINY_ENCODER, mask=TINY_ENCODER):
        super().__init__()
        self.heads, self.views, self.window = heads, views, steps * (views + 2)
        self.view_backbone = image_encoder("vit_base_patch16_224.dino", 3, rgb)
        self.mask_backbone = image_encoder("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 1, mask)
        rgb_width, mask_width = (e.model.embed_dim for e in (self.view_backbone, self.mask_backbone))
        self.updim_obs = nn.Conv2d(rgb_width, width, 1, bias=False)
        self.updim_cross = nn.Conv2d(rgb_width + mask_width, width, 1, bias=False)
        self.view_cls_tokens = nn.Parameter(torch.randn(1, views, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.1, batch_first=True)
        self.view_resampler = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.interaction = nn.Embedding(10, width)
        self.dropout_embedding = nn.Parameter(torch.randn(1, 1, width))
        binary = nn.ModuleDict({f"act_{key}": nn.Embedding(2, width) for key in KEYS})
        self.action_embedding_layer = module_of(camera_layer=nn.Linear(2, width), binary_layers=binary)
        self.recurrent = module_of(blocks=nn.ModuleList(self.block(width) for _ in range(layers)))
        self.lastlayer = module_of(norm=nn.LayerNorm(width), layer=nn.Linear(width, width, bias=False))
        self.final_ln = nn.LayerNorm(width)
        self.aux_vis_head = nn.Linear(width, 7)
        outputs = {"buttons": 8641, "camera": 121}
        self.pi_head = module_of(**{name: module_of(linear_layer=nn.Linear(width, n)) for name, n in outputs.items()})
        self.value_head = module_of(linear=nn.Linear(width, 1), normalizer=nn.Module())
        for name, shape in {"running_mean": (1,), "running_mean_sq": (1,), "debiasing_term": ()}.items():
            parameter = nn.Parameter(torch.zeros(shape), requires_grad=False)
            self.value_head.normalizer.register_parameter(name, parameter)
        self.view_backbone.requires_grad_(False)

    def block(self, width: int) -> nn.Module:
        return module_of(
            pre_r_ln=nn.LayerNorm(width),
            r=module_of(orc_block=attention(width, self.heads, self.window)),
            mlp0=module_of(norm=nn.LayerNorm(width), layer=nn.Linear(width, 4 * width, bias=False)),
            mlp1=module_of(layer=nn.Linear(4 * width, width)),
        )

    def encode(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255
        return self.view_backbone((pixels - MEAN[:, None, None]) / DEVIATION[:, None, None])[-1]

    def forward(self, images, goal_images, goal_masks, interactions, buttons, camera) -> dict[str, Tensor]:
        """Compute the outputs for the steps (T, ...) of one episode. Each step has a goal and its previous action."""
        agent = self.updim_obs(self.encode(images))
        goal = torch.cat([self.encode(goal_images), self.mask_backbone(goal_masks[:, None].float())[-1]], dim=1)
        patches = [maps.flatten(2).transpose(1, 2) for maps in (agent, self.updim_cross(goal))]
        sequence = torch.cat([self.view_cls_tokens.expand(len(images), -1, -1), *patches], dim=1)
        views = self.view_resampler(sequence)[:, : self.views]
        embedded = self.action_embedding_layer
        previous = embedded.camera_layer(camera)
        for key in KEYS:
            previous = previous + embedded.binary_layers[f"act_{key}"](buttons[key])
        tokens = torch.cat([views, self.interaction(interactions + 1)[:, None], previous[:, None]], dim=1)
        hidden = self.temporal(tokens.flatten(0, 1)).unflatten(0, (len(images), -1))
        auxiliary = self.aux_vis_head(hidden[:, -3])
        logits = {name: getattr(self.pi_head, name).linear_layer(hidden[:, -1]) for name in ("buttons", "camera")}
        return logits | {"visibility": auxiliary[:, 0:1], "point": auxiliary[:, 1:3], "box": auxiliary[:, 3:7]}

    def temporal(self, x: Tensor) -> Tensor:
        for block in self.recurrent.blocks:
            x = block.pre_r_ln(x)
            x = x + self.attend(block.r.orc_block, x)
            x = x + block.mlp1.layer(F.relu(block.mlp0.layer(block.mlp0.norm(x))))
        x = F.relu(self.lastlayer.layer(self.lastlayer.norm(F.relu(x))))
        return self.final_ln(x)

    def attend(self, a: nn.Module, x: Tensor) -> Tensor:
        rows = []
        for now in range(len(x)):
            context = x[max(0, now - self.window + 1) : now + 1]
            distances = torch.arange(len(context)).flip(0)
            parts = []
            for h in range(self.heads):
                size = x.shape[1] // self.heads
                head = slice(h * size, (h + 1) * size)
                scores = a.k_layer(context)[:, head] @ a.q_layer(x[now])[head] / size
                scores = scores + a.r_layer(x[now])[10 * h : 10 * (h + 1)] @ a.b_nd[:, distances]
                parts.append(scores.softmax(dim=0) @ a.v_layer(context)[:, head])
            rows.append(a.proj_layer(torch.cat(parts)))
        return torch.stack(rows)
