"""A published policy, in a folder or on the Hub, held against its own self-test by the code that lies beside it."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor

from rocket_hf.errors import UserError
from rocket_hf.export.policy_kinds import VLA, Kind, kind_of
from rocket_hf.hub import POLICY_FILES, parse_source, resolve
from rocket_hf.modeling.rocket2_self_test import Rocket2SelfTestReport
from rocket_hf.modeling.self_test import FILE as SELF_TEST
from rocket_hf.modeling.self_test import SelfTest, SelfTestReport, find_self_test, read_self_test

from .check import check_code, check_config, check_self_test, check_weights

PIXEL = 1 / 255

LOADED = '{name} = {auto}.from_pretrained("{source}",{pin} trust_remote_code=True)'


@dataclass
class Verified:
    source: str
    commit: str | None  # of a repository on the Hub
    report: SelfTestReport | Rocket2SelfTestReport
    kind: Kind

    @property
    def snippet(self) -> str:
        return snippet(self.source, self.commit, self.kind)


def snippet(source: str, revision: str | None, kind: Kind = VLA) -> str:
    """How to load a policy, with its code and weights pinned to one revision."""
    loaded = {"policy": "AutoModel"} | ({"processor": "AutoProcessor"} if kind.has_processor else {})
    pin = f' revision="{revision}",' if revision else ""
    lines = [LOADED.format(name=name, auto=auto, source=source, pin=pin) for name, auto in loaded.items()]
    return "\n".join([f"from transformers import {', '.join(loaded.values())}", "", *lines])


def verify(source: str, revision: str | None = None) -> Verified:
    """Runs the code that lies beside the weights, after a look at what it imports. ValueError says what is wrong."""
    resolved = resolve(source, POLICY_FILES, revision=revision)
    folder, commit = resolved.folder.resolve(), resolved.commit
    source = source if commit is None else parse_source(source).id
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{source} is an adapter: verify its base, and load it as its card says")
    if not (folder / "config.json").is_file():
        raise UserError(f"{source} holds no policy: there is no config.json")
    kind = kind_of(folder)
    find_self_test(str(folder), None)
    check_config(folder)
    for path in sorted(folder.glob("*.py")):
        check_code(path, {other.stem for other in folder.glob("*.py")})
    check_weights(folder, kind)
    check_self_test(folder, kind)
    place = source if commit else str(folder)
    model = load(AutoModel, place, commit)
    processor = load(AutoProcessor, place, commit) if kind.has_processor else None
    require_one_commit([model, model.config, *([processor] if processor is not None else [])], commit)
    report = model.self_test()
    if processor is not None:
        check_processor(processor, read_self_test(folder / SELF_TEST))
    return Verified(source, commit, kind.report(**vars(report)), kind)


def load(auto: Any, source: str, commit: str | None) -> Any:
    return auto.from_pretrained(source, revision=commit or "main", trust_remote_code=True)


def require_one_commit(parts: list[Any], commit: str | None) -> None:
    """The configuration and the classes say of which commit they are; the weights are those of the configuration."""
    if commit is None:
        return
    noted = getattr(parts[0].config, "_commit_hash", None) or commit  # newer versions of transformers note none
    if noted != commit:
        raise UserError(f"the configuration is of commit {noted}, the files are of {commit}")
    for part in parts:
        if commit not in type(part).__module__.split("."):
            raise UserError(f"the code of {type(part).__name__} is not that of commit {commit}")


def check_processor(processor: Any, test: SelfTest) -> None:
    """It still makes the same batch of the robot's observation, and the same robot actions of the policy's."""
    made = processor(images=test.images, task=test.task, state=test.state)
    there = {"images": (made["images"], test.batch["images"].float() / 255, 0.51 * PIXEL + 1e-3)}
    there |= {name: (made[name], test.batch[name], 1e-4) for name in made if name != "images"}
    there["actions"] = (processor.unnormalize_actions(test.actions), test.robot_actions, 1e-4)
    for name, (value, wanted, tolerance) in there.items():
        if value.shape != wanted.shape or not torch.allclose(value.float(), wanted.float(), atol=tolerance, rtol=1e-4):
            raise UserError(f"the processor no longer makes the {name} that it made where this policy was published")
