"""Verification of a published policy, in a folder or on the Hub: checks of its files, and a run of its self-test."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoProcessor

from rocket_hf.errors import UserError
from rocket_hf.hub import POLICY_FILES, parse_source, resolve
from rocket_hf.hub_cards.cards import python
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.rocket2_self_test import Rocket2SelfTestReport
from rocket_hf.modeling.self_test import (
    SELF_TEST_FILE,
    SelfTest,
    SelfTestReport,
    find_self_test,
    read_self_test,
    run_self_test,
)

from .check import changed_code_files, check_code_files, check_config, check_self_test, check_weights
from .policy_facts import VLA, PolicyKind, read_policy_kind
from .verify_adapter import ADAPTER_CONFIG, adapter_snippet, load_adapter

PIXEL = 1 / 255
LOADING_LINE = "{name} = {auto_class}.from_pretrained({source},{revision} trust_remote_code=True)"


@dataclass
class Verified:
    """A policy that passed its self-test."""

    source: str
    commit: str | None  # None for a local folder
    report: SelfTestReport | Rocket2SelfTestReport
    snippet: str  # code that loads the policy
    unexecuted_code: list[str] = field(default_factory=list)  # names of code files that differ from this package's


def loading_snippet(source: str, revision: str | None, kind: PolicyKind = VLA) -> str:
    """Return the code that loads a policy with its code and weights pinned to one revision."""
    classes = {"policy": "AutoModel"} | ({"processor": "AutoProcessor"} if kind.has_processor else {})
    pin = f" revision={python(revision)}," if revision else ""
    lines = [
        LOADING_LINE.format(name=name, auto_class=auto_class, source=python(source), revision=pin)
        for name, auto_class in classes.items()
    ]
    return "\n".join([f"from transformers import {', '.join(classes.values())}", "", *lines])


def verify_policy(source: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Verified:
    """Check the files of a policy or an adapter and run its self-test. A UserError describes the first problem.

    The code that is stored with a policy is executed, as users of AutoModel do, only if it is this package's own, byte
    for byte. Otherwise this package's classes load the weights, unless `trust_remote_code` is True.
    """
    resolved = resolve(source, POLICY_FILES, revision=revision)
    folder, commit = resolved.folder.resolve(), resolved.commit
    name = source if commit is None else parse_source(source).id
    check_code_files(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        return verify_adapter(folder, name, commit)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{source} contains no policy, because config.json is missing: give a policy's folder or repository"
        )
    kind = read_policy_kind(folder)
    find_self_test(str(folder), None)
    check_config(folder, kind)
    check_weights(folder, kind)
    check_self_test(folder, kind)
    changed = [] if trust_remote_code else changed_code_files(folder, kind)
    with verification_errors(source, is_published_code=not changed):
        if changed:
            model: Any = kind.model.from_pretrained(folder)
            processor: Any = RocketProcessor.from_pretrained(folder) if kind.has_processor else None
        else:
            model, processor = load_published_code(str(folder) if commit is None else name, commit, kind)
        report = model.self_test()
        if processor is not None:
            check_processor(processor, read_self_test(folder / SELF_TEST_FILE))
    return Verified(name, commit, kind.report(**vars(report)), loading_snippet(name, commit, kind), changed)


def verify_adapter(folder: Path, name: str, commit: str | None) -> Verified:
    """Load an adapter on its base policy with PEFT, and compare the actions with the recorded ones."""
    base, policy = load_adapter(folder)
    test = read_self_test(folder / SELF_TEST_FILE)
    try:
        report = run_self_test(policy, test)
        check_processor(RocketProcessor.from_pretrained(folder), test)
    except UserError as error:
        raise UserError(f"the adapter {name} fails its verification: {error}") from error
    return Verified(name, commit, report, adapter_snippet(name, commit, base))


def load_published_code(name: str, commit: str | None, kind: PolicyKind) -> tuple[Any, Any]:
    """Load the policy and its processor, or None, with the code that is stored with the weights."""
    model = load(AutoModel, name, commit)
    processor = load(AutoProcessor, name, commit) if kind.has_processor else None
    require_one_commit([model, model.config, *([processor] if processor is not None else [])], commit)
    return model, processor


@contextmanager
def verification_errors(source: str, *, is_published_code: bool) -> Iterator[None]:
    """Raise a UserError that names the policy in place of a UserError.

    Published code may raise any exception: it is not part of this package, and has its own class UserError.
    """
    caught: type[Exception] = Exception if is_published_code else UserError
    try:
        yield
    except caught as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the policy {source} fails its verification: {reason}") from error


def load(auto_class: Any, source: str, commit: str | None) -> Any:
    return auto_class.from_pretrained(source, revision=commit or "main", trust_remote_code=True)


def require_one_commit(parts: list[Any], commit: str | None) -> None:
    """Raise if the configuration or the classes come from another commit than the downloaded files."""
    if commit is None:
        return
    # Newer versions of transformers do not record the commit of the configuration.
    recorded = getattr(parts[0].config, "_commit_hash", None) or commit
    if recorded != commit:
        raise UserError(
            f"the configuration is from commit {recorded}, the files are from {commit}: clear the Hub cache and retry"
        )
    for part in parts:
        if commit not in type(part).__module__.split("."):
            raise UserError(
                f"the code of {type(part).__name__} is not from commit {commit}: clear the Hub cache and retry"
            )


def check_processor(processor: Any, test: SelfTest) -> None:
    """Raise if the processor no longer makes the recorded batch, or the recorded robot actions."""
    made = processor(images=test.images, task=test.task, state=test.state)
    # name -> (value, recorded value, absolute tolerance)
    comparisons = {"images": (made["images"], test.batch["images"].float() / 255, 0.51 * PIXEL + 1e-3)}
    comparisons |= {name: (made[name], test.batch[name], 1e-4) for name in made if name != "images"}
    comparisons["actions"] = (processor.unnormalize_actions(test.actions), test.robot_actions, 1e-4)
    for name, (value, recorded, tolerance) in comparisons.items():
        is_same = value.shape == recorded.shape and torch.allclose(
            value.float(), recorded.float(), atol=tolerance, rtol=1e-4
        )
        if not is_same:
            raise UserError(
                f"the processor's {name} differ from those recorded when the policy was published: install the "
                "versions that the policy's card lists"
            )
