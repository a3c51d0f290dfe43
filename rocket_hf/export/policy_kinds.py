"""What a published policy can be, by the model_type of its config.json: a VLA with its processor, or a ROCKET-2."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_self_test import Rocket2SelfTest, Rocket2SelfTestReport, read_rocket2_self_test
from rocket_hf.modeling.self_test import SelfTest, SelfTestReport, read_self_test

from .export_files import MODEL_CLASSES, PROCESSOR_CLASSES, ROCKET2_CLASSES
from .lerobot_pipelines import FILES as LEROBOT_FILES

PROCESSOR_FILES = (
    "processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    model: type[Any]
    code: dict[str, str]  # where transformers finds its classes
    beside: tuple[str, ...]  # what may lie beside weights, code, self-test and card
    has_processor: bool
    has_base: bool  # whether it always was trained from another model
    read_self_test: Callable[[Path], SelfTest | Rocket2SelfTest]
    report: Callable[..., SelfTestReport | Rocket2SelfTestReport]


VLA = Kind(
    model=RocketForActionPrediction,
    code=MODEL_CLASSES | PROCESSOR_CLASSES,
    beside=(*PROCESSOR_FILES, *LEROBOT_FILES),
    has_processor=True,
    has_base=True,
    read_self_test=read_self_test,
    report=SelfTestReport,
)
ROCKET2 = Kind(
    model=Rocket2ForActionPrediction,
    code=ROCKET2_CLASSES,
    beside=(),
    has_processor=False,
    has_base=False,
    read_self_test=read_rocket2_self_test,
    report=Rocket2SelfTestReport,
)
KINDS = {RocketConfig.model_type: VLA, Rocket2Config.model_type: ROCKET2}


def kind_of(folder: Path) -> Kind:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"config.json is missing in {folder}: export the policy again")
    told = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    if told not in KINDS:
        raise UserError(f"{path} is of a model of type {told!r}: give a policy's folder, of a VLA or of ROCKET-2")
    return KINDS[told]
