"""Loading of a published adapter on its base policy, as its card does it, with the classes of this package."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError

from rocket_hf.errors import UserError
from rocket_hf.hub import POLICY_FILES, resolve
from rocket_hf.hub_cards.cards import python
from rocket_hf.hub_cards.facts import Source
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.self_test import SELF_TEST_FILE

from .check import ADAPTER_FORBIDDEN_TENSORS, ADAPTER_WEIGHTS, check_tensors, read_adapter_base, read_json

ADAPTER_CONFIG = "adapter_config.json"


def load_adapter(folder: Path) -> tuple[Source, Any]:
    """Return the base policy of the adapter in `folder`, and the policy with the adapter merged into it."""
    base = read_adapter_base(folder)
    if read_json(folder / ADAPTER_CONFIG).get("peft_type") != "LORA":
        raise UserError(f"{folder} is not a LoRA adapter, the only kind that rocket-hf publishes: give another folder")
    if not (folder / SELF_TEST_FILE).is_file():
        raise UserError(
            f"{folder} has no {SELF_TEST_FILE}, which this version writes for adapters too: publish the adapter again"
        )
    check_tensors(folder / ADAPTER_WEIGHTS, ADAPTER_FORBIDDEN_TENSORS)
    base_folder = resolve(f"{base.id}@{base.revision}", POLICY_FILES, kind="base policy").folder
    model = RocketForActionPrediction.from_pretrained(base_folder, alignment=None, dtype=torch.float32)
    try:
        adapted = PeftModel.from_pretrained(model.for_robot(folder), str(folder))
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"the adapter in {folder} does not fit {base.id}: {reason}; publish the adapter again"
        ) from error
    return base, adapted.merge_and_unload().eval()


def adapter_snippet(source: str, revision: str | None, base: Source) -> str:
    """Return the code that loads an adapter on its base policy, both pinned to one revision."""
    place = python(source) + (f", revision={python(revision)}" if revision else "")
    return f"""from peft import PeftModel
from transformers import AutoModel, AutoProcessor

base = AutoModel.from_pretrained("{base.id}", revision="{base.revision}", trust_remote_code=True, dtype="float32")
policy = PeftModel.from_pretrained(base.for_robot({place}), {place}).merge_and_unload()
processor = AutoProcessor.from_pretrained({place}, trust_remote_code=True)"""
