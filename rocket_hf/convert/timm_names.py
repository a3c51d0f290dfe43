"""Renaming rules for timm's vision transformers, except prefix tokens and layer scales, which differ by model."""

from .plan import Rename


def vit_rules(source: str, target: str) -> list[Rename]:
    """Return the rules for one transformer. `source` is a pattern of timm's module name, `target` our module name."""
    source_block, target_block = rf"{source}\.blocks\.(\d+)", rf"{target}.blocks.\1"
    return [
        Rename(rf"{source}\.pos_embed", f"{target}.position_embedding.weight", stack_rows=True),
        Rename(rf"{source}\.patch_embed\.proj\.(.*)", rf"{target}.patch_embedding.\1"),
        Rename(rf"{source_block}\.norm1\.(.*)", rf"{target_block}.attention_norm.\2"),
        Rename(rf"{source_block}\.attn\.qkv\.(.*)", rf"{target_block}.qkv.\2"),
        Rename(rf"{source_block}\.attn\.proj\.(.*)", rf"{target_block}.attention_out.\2"),
        Rename(rf"{source_block}\.norm2\.(.*)", rf"{target_block}.mlp_norm.\2"),
        Rename(rf"{source_block}\.mlp\.fc1\.(.*)", rf"{target_block}.mlp_in.\2"),
        Rename(rf"{source_block}\.mlp\.fc2\.(.*)", rf"{target_block}.mlp_out.\2"),
    ]
