"""Publish a trained policy or its LoRA adapter on the Hub, or write the same files to a folder.

All files are built in a temporary folder and checked before anything is uploaded, in one commit. The command can be run
again after any failure; an unchanged policy makes no commit.
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocket_hf.errors import UserError

if TYPE_CHECKING:
    from rocket_hf.evaluation.trained_policy import TrainedPolicySource
    from rocket_hf.hub_cards.facts import Provenance
    from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
    from rocket_hf.publishing.package import Package
    from rocket_hf.publishing.policy_facts import PolicyKind
    from rocket_hf.publishing.upload import Published

HELP = "publish a trained policy or its adapter"
DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", type=Path, help="folder of a training run, a checkpoint or a policy")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="Hub repository, which is created if it does not exist")
    parser.add_argument("--to", metavar="FOLDER", type=Path, help="write to a new folder instead of the Hub")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--tag", help="tag for the commit, such as v1; the card's code examples use it as the revision")
    parser.add_argument("--adapter", action="store_true", help="publish only the LoRA adapter, for PEFT")
    parser.add_argument(
        "--base", metavar="OWNER/NAME[@REVISION]",
        help="Hub repository of the base model (default: read from the run's recipe)",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="OWNER/NAME[@REVISION]",
        help="Hub repository of the training data (default: the run's datasets that are on the Hub); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--keep", metavar="HEAD,...",
        help="auxiliary heads of ROCKET-2 to keep: visibility, point, box, or none (default: those of the run)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the published weights (default: unchanged)")
    parser.add_argument(
        "--shard", default="5GB", metavar="SIZE", help="maximum weight file size (default: %(default)s)"
    )
    parser.add_argument(
        "--license", metavar="ID", help="license id of the Hub (default: license in the base model's card)"
    )
    parser.add_argument(
        "--success", action="append", default=[], metavar="SUITE=48/50",
        help="success rate for the card: successes and episodes on a suite; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--evaluation", action="append", default=[], metavar="REPORT", type=Path,
        help="report of `rocket-hf eval` for the card, its folder or JSON file; repeatable",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, metavar="HZ", help="control rate (default: that of the dataset)")
    parser.add_argument("--conventions", default="", help="sentence on the meaning of actions and frames of reference")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.evaluation.trained_policy import find_trained_policy
    from rocket_hf.publishing.package import push, write_to_folder
    from rocket_hf.publishing.policy_facts import ROCKET2

    check_values(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = find_trained_policy(arguments.source)
    is_rocket2 = policy_kind_of(source) is ROCKET2
    require_applicable_options(arguments, is_rocket2)
    provenance = collect_provenance(arguments, source, is_rocket2)
    package = build_package(arguments, source, provenance, is_rocket2)
    if arguments.to is not None:
        write_to_folder(package, arguments.to, tag=arguments.tag)
        print_folder(arguments.to)
    else:
        print_commit(push(package, arguments.repo, private=arguments.private, tag=arguments.tag), package)
    return 0


def check_values(arguments: argparse.Namespace) -> None:
    """Check the options that need no file, before anything is read or loaded."""
    from rocket_hf.hub import require_repo_id, require_tag
    from rocket_hf.publishing.package import require_shard_size

    if arguments.repo is not None:
        require_repo_id(arguments.repo)
    if arguments.tag is not None:
        require_tag(arguments.tag)
    require_shard_size(arguments.shard)
    if arguments.rate is not None and not 0 < arguments.rate < math.inf:
        raise UserError(f"--rate must be a positive number of steps per second, got {arguments.rate:g}")


def missing_destination(arguments: argparse.Namespace) -> list[str]:
    """Return a sentence if the destination is missing or not unique."""
    if (arguments.repo is None) == (arguments.to is None):
        return ["choose where to publish: either --repo OWNER/NAME or --to FOLDER"]
    return []


def policy_kind_of(source: "TrainedPolicySource") -> "PolicyKind":
    """Return the kind of a policy according to its configuration, or to the recipe of a run without exported policy."""
    from rocket_hf.publishing.policy_facts import ROCKET2, VLA, read_policy_kind
    from rocket_hf.training.recipe import Rocket2Recipe

    if source.policy is not None:
        return read_policy_kind(source.policy)
    return ROCKET2 if isinstance(source.recipe, Rocket2Recipe) else VLA


def require_applicable_options(arguments: argparse.Namespace, is_rocket2: bool) -> None:
    if is_rocket2 and arguments.adapter:
        raise UserError("--adapter does not apply to ROCKET-2, which is trained without LoRA: remove it")
    if not is_rocket2 and arguments.keep is not None:
        raise UserError("--keep applies to ROCKET-2's auxiliary heads only, but this is a VLA policy: remove it")


def collect_provenance(arguments: argparse.Namespace, source: "TrainedPolicySource", is_rocket2: bool) -> "Provenance":
    """Collect the facts for the card from the run and from the command's options, which take precedence."""
    from rocket_hf.publishing.policy_facts import add_evaluations, read_rocket2_evaluation
    from rocket_hf.publishing.provenance import build_provenance

    provenance = build_provenance(
        source.recipe, source.policy, source.run, source.checkpoint,
        base=arguments.base, license=arguments.license, datasets=arguments.dataset, is_rocket2=is_rocket2,
        missing=missing_destination(arguments),
    )  # fmt: skip
    provenance.control_rate = arguments.rate or provenance.control_rate
    provenance.conventions = arguments.conventions
    add_evaluations(provenance, arguments.evaluation, arguments.success)
    if is_rocket2:
        provenance.rocket2_evaluations = [read_rocket2_evaluation(path) for path in arguments.evaluation]
    training = provenance.training
    if training is not None and training.teacher is not None and training.teacher.note:
        print(f"note       {training.teacher.note}")
    return provenance


def build_package(
    arguments: argparse.Namespace, source: "TrainedPolicySource", provenance: "Provenance", is_rocket2: bool
) -> "Package":
    import torch

    if arguments.adapter:
        return adapter_package(arguments, source, provenance)
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    settings: dict[str, Any] = {"dtype": dtype, "shard_size": arguments.shard}
    build = rocket2_package if is_rocket2 else policy_package
    return build(arguments, source, provenance, settings)


def policy_package(
    arguments: argparse.Namespace, source: "TrainedPolicySource", provenance: "Provenance", settings: dict[str, Any]
) -> "Package":
    from rocket_hf.evaluation.identity import fingerprint
    from rocket_hf.evaluation.trained_policy import load_trained_policy
    from rocket_hf.publishing.package import PolicyPackage
    from rocket_hf.publishing.policy_facts import require_same_policy

    model, processor = load_trained_policy(source)
    require_same_policy(fingerprint(model, processor), arguments.evaluation)
    return PolicyPackage(model, processor, provenance, **settings)


def rocket2_package(
    arguments: argparse.Namespace, source: "TrainedPolicySource", provenance: "Provenance", settings: dict[str, Any]
) -> "Package":
    from rocket_hf.evaluation.identity import rocket2_fingerprint
    from rocket_hf.evaluation.trained_policy import load_trained_rocket2
    from rocket_hf.publishing.package import Rocket2Package
    from rocket_hf.publishing.policy_facts import require_same_policy

    model = load_trained_rocket2(source)
    require_same_policy(rocket2_fingerprint(model), arguments.evaluation)
    keep = heads_to_keep(arguments.keep, source, model)
    print(f"heads      keeps the auxiliary heads: {', '.join(keep) or 'none'}")
    return Rocket2Package(model, provenance, keep, **settings)


def heads_to_keep(option: str | None, source: "TrainedPolicySource", model: "Rocket2ForActionPrediction") -> list[str]:
    """Return the heads of --keep; by default those that the run's recipe kept, and none of a converted checkpoint.

    Converted checkpoints have all heads, because conversion copies every tensor.
    """
    from rocket_hf.convert.write import REPORT

    if option is not None:
        return [] if option == "none" else [head.strip() for head in option.split(",")]
    is_converted = source.policy is not None and (source.policy / REPORT).is_file()
    return [] if is_converted else list(model.config.auxiliary_heads)


def adapter_package(
    arguments: argparse.Namespace, source: "TrainedPolicySource", provenance: "Provenance"
) -> "Package":
    from rocket_hf.evaluation.identity import fingerprint
    from rocket_hf.evaluation.trained_policy import load_trained_policy, load_unmerged_checkpoint
    from rocket_hf.publishing.package import AdapterPackage
    from rocket_hf.publishing.policy_facts import require_same_policy
    from rocket_hf.training.base_policy import find_policy_folder
    from rocket_hf.training.recipe import VLARecipe

    recipe = source.recipe
    if not isinstance(recipe, VLARecipe) or source.checkpoint is None:
        raise UserError("--adapter needs a training run or one of its checkpoints: give the folder of one of those")
    if recipe.lora.init in ("pissa", "olora"):
        raise UserError(
            f"lora.init {recipe.lora.init} changes the base weights, so an adapter does not fit the original base: "
            "publish the merged policy, without --adapter"
        )
    if arguments.evaluation:
        require_same_policy(fingerprint(*load_trained_policy(source)), arguments.evaluation)
    model, processor = load_unmerged_checkpoint(source)
    return AdapterPackage(model, processor, provenance, find_policy_folder(recipe.policy))


def print_folder(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"written    {folder}: {len(files)} files, {size / 1e6:.2f} MB, checked")


def print_commit(published: "Published", package: "Package") -> None:
    from rocket_hf.publishing.verify import loading_snippet

    status = "published " if published.changed else "unchanged "
    print(f"{status} {published.repo} at {published.commit}" + (f", tag {published.tag}" if published.tag else ""))
    if package.kind is not None:
        print(f"\n{loading_snippet(published.repo, published.commit, package.kind)}")
    else:
        print("           its card shows how to load the adapter")
