"""Kinds of policy folders, by `model_type` in config.json: VLA policies with a processor, and ROCKET-2 policies."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.foreign_code import MODEL_CLASSES, PROCESSOR_CLASSES, ROCKET2_CLASSES
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_self_test import Rocket2SelfTest, Rocket2SelfTestReport, read_rocket2_self_test
from rocket_hf.modeling.self_test import SelfTest, SelfTestReport, read_self_test

from .lerobot_pipelines import FILES as LEROBOT_FILES

PROCESSOR_FILES = (
    "processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class PolicyKind:
    """Classes and files of one kind of policy."""

    model: type[Any]
    code: dict[str, str]  # value of auto_map
    extra_files: tuple[str, ...]  # names allowed besides weights, code, self-test and card
    has_processor: bool
    requires_base: bool  # whether every policy of this kind was trained from another model
    read_self_test: Callable[[Path], SelfTest | Rocket2SelfTest]
    report: Callable[..., SelfTestReport | Rocket2SelfTestReport]


VLA = PolicyKind(
    model=RocketForActionPrediction,
    code=MODEL_CLASSES | PROCESSOR_CLASSES,
    extra_files=(*PROCESSOR_FILES, *LEROBOT_FILES),
    has_processor=True,
    requires_base=True,
    read_self_test=read_self_test,
    report=SelfTestReport,
)
ROCKET2 = PolicyKind(
    model=Rocket2ForActionPrediction,
    code=ROCKET2_CLASSES,
    extra_files=(),
    has_processor=False,
    requires_base=False,
    read_self_test=read_rocket2_self_test,
    report=Rocket2SelfTestReport,
)
POLICY_KINDS = {RocketConfig.model_type: VLA, Rocket2Config.model_type: ROCKET2}


def read_policy_kind(folder: Path) -> PolicyKind:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"config.json is missing in {folder}: export the policy again") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): export the policy again") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in POLICY_KINDS:
        raise UserError(f"{path} has the model type {model_type!r}: give the folder of a VLA or ROCKET-2 policy")
    return POLICY_KINDS[model_type]
