"""Loading of trained policies from a run, from one of its checkpoints, or from an exported policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from json import JSONDecodeError
from pathlib import Path

from rocket_hf.errors import UserError
from rocket_hf.foreign_code import check_no_foreign_code
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import ALIGNMENT_HEAD_PREFIX, RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.policy_files import check_policy_files
from rocket_hf.training.base_policy import find_policy_folder
from rocket_hf.training.checkpoint import STATE, Checkpoints, load_tensors_into, load_trainable_weights, read_tensors
from rocket_hf.training.data.dataset_statistics import compute_dataset_statistics
from rocket_hf.training.distributed.tensor_storage import stored_tensor
from rocket_hf.training.optimization import trainable_parameters
from rocket_hf.training.recipe import BaseRecipe, Rocket2Recipe, VLARecipe
from rocket_hf.training.recipe_files import read_run_recipe
from rocket_hf.training.rocket2.policy import load_rocket2_policy, rocket2_policy_config
from rocket_hf.training.run import CHECKPOINTS, POLICY, RECIPE
from rocket_hf.training.vla.resources import (
    alignment_config,
    create_processor,
    load_policy,
    open_datasets,
    policy_config,
)
from rocket_hf.training.vla.trainable import make_trainable, merge_lora_weights, policy_from_weights

# The alignment head is dropped after loading, so the width of the teacher's features does not matter.
ANY_TARGET_WIDTH = 2


@dataclass
class TrainedPolicySource:
    """Run, exported policy and checkpoint that a path of the user belongs to, as far as they exist."""

    run: Path | None
    policy: Path | None
    checkpoint: Path | None

    @property
    def recipe(self) -> BaseRecipe | None:
        return read_run_recipe(self.run / RECIPE) if self.run is not None else None


def find_trained_policy(path: Path) -> TrainedPolicySource:
    """Find out whether `path` is a run, a checkpoint or a policy.

    A run stands for its exported policy, or for its last checkpoint if it has not exported one yet.
    """
    path = path.resolve()
    check_no_foreign_code(path)
    if (path / RECIPE).is_file():
        return find_in_run(path)
    if (path / STATE).is_file():
        run = path.parents[1]
        if not (run / RECIPE).is_file():
            raise UserError(f"the checkpoint {path} is outside of its run: {run} has no {RECIPE}; move it back")
        return TrainedPolicySource(run, None, path)
    if (path / "config.json").is_file():
        return TrainedPolicySource(path.parent if (path.parent / RECIPE).is_file() else None, path, None)
    raise UserError(
        f"{path} is neither a training run (no {RECIPE}) nor a checkpoint (no {STATE}) nor a policy (no config.json): "
        "check the path"
    )


def find_in_run(run: Path) -> TrainedPolicySource:
    checkpoints = Checkpoints(run / CHECKPOINTS, keep=1)
    steps = checkpoints.steps()
    policy = run / POLICY if (run / POLICY / "config.json").is_file() else None
    if policy is None and not steps:
        raise UserError(f"the run in {run} has neither an exported policy nor a checkpoint: train it first")
    return TrainedPolicySource(run, policy, checkpoints.path(steps[-1]) if steps else None)


def load_trained_policy(source: TrainedPolicySource) -> tuple[RocketForActionPrediction, RocketProcessor]:
    """Load a policy with merged LoRA weights and without alignment head, and its processor."""
    if source.policy is not None:
        with file_errors_as_user_errors(source.policy):
            model = RocketForActionPrediction.from_pretrained(source.policy, alignment=None)
            return model, RocketProcessor.from_pretrained(source.policy)
    model, processor = load_unmerged_checkpoint(source)
    return policy_from_weights(model.config, merge_lora_weights(model)), processor


def load_unmerged_checkpoint(source: TrainedPolicySource) -> tuple[RocketForActionPrediction, RocketProcessor]:
    """Load the model of a checkpoint with separate LoRA layers, with averaged weights if the run keeps an average.

    The model has a new alignment head instead of the trained one, only so that the same other weights are trainable.
    """
    recipe, checkpoint = source.recipe, source.checkpoint
    if not isinstance(recipe, VLARecipe) or checkpoint is None:
        raise UserError(
            "only a VLA training run or one of its checkpoints can be rebuilt from its base policy: give the folder of "
            "one of those"
        )
    if recipe.run.quantize:
        raise UserError(
            "the base policy of this run was quantized to 4 bits, so its LoRA weights do not fit the original base: "
            f"use the merged policy in its folder {POLICY}/"
        )
    base = find_policy_folder(recipe.policy)
    config = policy_config(base, recipe)
    if recipe.alignment is not None:
        config = RocketConfig.from_dict(config.to_dict(), alignment=alignment_config(recipe, ANY_TARGET_WIDTH))
    model = load_policy(base, config.alignment, recipe)
    make_trainable(model, recipe)
    values = read_tensors(checkpoint, weights_file(recipe))
    weights = {name: stored_tensor(weight) for name, weight in trainable_parameters(model) if not is_head(name)}
    load_tensors_into(weights, {name: value for name, value in values.items() if not is_head(name)}, checkpoint)
    return model.eval(), load_processor(source, recipe, base, config)


def weights_file(recipe: BaseRecipe) -> str:
    """Return the name of the checkpoint file with the weights to export."""
    return "average" if recipe.run.ema is not None else "model"


def is_head(name: str) -> bool:
    return name.startswith(ALIGNMENT_HEAD_PREFIX)


def load_trained_rocket2(source: TrainedPolicySource) -> Rocket2ForActionPrediction:
    """Load a ROCKET-2 policy with the auxiliary heads that its recipe keeps. It has no processor."""
    if source.policy is not None:
        with file_errors_as_user_errors(source.policy):
            return Rocket2ForActionPrediction.from_pretrained(source.policy)
    recipe, checkpoint = source.recipe, source.checkpoint
    if not isinstance(recipe, Rocket2Recipe) or checkpoint is None:
        raise UserError("this is not a ROCKET-2 policy, training run or checkpoint: give the folder of one of those")
    model = load_rocket2_policy(recipe, rocket2_policy_config(recipe))
    load_trainable_weights(model, read_tensors(checkpoint, weights_file(recipe)), checkpoint)
    return model.for_inference(recipe.rocket2.keep)


def load_processor(source: TrainedPolicySource, recipe: VLARecipe, base: Path, config: RocketConfig) -> RocketProcessor:
    """Load the processor of the exported policy, or build it from the statistics of the training data."""
    assert source.run is not None
    exported = source.run / POLICY
    if (exported / "processor_config.json").is_file():
        with file_errors_as_user_errors(exported):
            return RocketProcessor.from_pretrained(exported)
    datasets = open_datasets(replace(recipe.data, in_memory=False), config)
    return create_processor(base, config, compute_dataset_statistics(datasets))


@contextmanager
def file_errors_as_user_errors(folder: Path) -> Iterator[None]:
    """Raise a UserError for errors of transformers about missing or damaged files of a policy."""
    check_policy_files(folder)
    try:
        yield
    except UserError as error:
        raise UserError(f"cannot load the policy in {folder}: {error}") from error
    except (OSError, JSONDecodeError, ImportError) as error:  # ImportError: there is no tokenizer.json
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise UserError(f"cannot load the policy in {folder}: {reason}; export or download it again") from error
