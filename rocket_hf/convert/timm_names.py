"""timm's vision transformers in our names, but for what only some of them have: prefix tokens and layer scales."""

from .plan import Rename


def vit_rules(theirs: str, ours: str) -> list[Rename]:
    """`theirs` is a pattern, `ours` a name."""
    block, target = rf"{theirs}\.blocks\.(\d+)", rf"{ours}.blocks.\1"
    return [
        Rename(rf"{theirs}\.pos_embed", f"{ours}.position_embedding.weight", rows=True),
        Rename(rf"{theirs}\.patch_embed\.proj\.(.*)", rf"{ours}.patch_embedding.\1"),
        Rename(rf"{block}\.norm1\.(.*)", rf"{target}.attention_norm.\2"),
        Rename(rf"{block}\.attn\.qkv\.(.*)", rf"{target}.qkv.\2"),
        Rename(rf"{block}\.attn\.proj\.(.*)", rf"{target}.attention_out.\2"),
        Rename(rf"{block}\.norm2\.(.*)", rf"{target}.mlp_norm.\2"),
        Rename(rf"{block}\.mlp\.fc1\.(.*)", rf"{target}.mlp_in.\2"),
        Rename(rf"{block}\.mlp\.fc2\.(.*)", rf"{target}.mlp_out.\2"),
    ]
