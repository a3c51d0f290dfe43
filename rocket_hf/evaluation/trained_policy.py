"""What a run has made, as models in memory: of its exported policy, or of any of its checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import HEAD, RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.training.checkpoint import STATE, Checkpoints, put, read
from rocket_hf.training.data.dataset_statistics import dataset_statistics
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.optimization import trained
from rocket_hf.training.recipe import Recipe
from rocket_hf.training.recipe_files import read_recipe
from rocket_hf.training.rocket2.policy import open_policy
from rocket_hf.training.rocket2.policy import policy_config as goal_policy_config
from rocket_hf.training.run import CHECKPOINTS, POLICY, RECIPE
from rocket_hf.training.vla.sources import alignment_config, load_policy, policy_config, policy_folder, robot_processor
from rocket_hf.training.vla.trainable import make_trainable, merged_weights, policy_of

ANY_WIDTH = 2  # of the teacher's features: the head is not looked at here


@dataclass
class Origin:
    """What a path given by a user is: a policy's folder, or a checkpoint; and the run that it is of, if of any."""

    run: Path | None
    policy: Path | None
    checkpoint: Path | None

    @property
    def recipe(self) -> Recipe | None:
        return read_recipe(str(self.run / RECIPE)) if self.run is not None else None


def find_origin(path: Path) -> Origin:
    """A run's folder stands for its exported policy, and for its last checkpoint where it has not ended yet."""
    path = path.resolve()
    if (path / RECIPE).is_file():
        steps = Checkpoints(path / CHECKPOINTS, keep=1).steps()
        exported = path / POLICY if (path / POLICY / "config.json").is_file() else None
        if exported is None and not steps:
            raise UserError(f"the run in {path} has neither ended nor saved a checkpoint: there is nothing to publish")
        last = Checkpoints(path / CHECKPOINTS, keep=1).path(steps[-1]) if steps else None
        return Origin(path, exported, last)
    if (path / STATE).is_file():
        run = path.parents[1]
        if not (run / RECIPE).is_file():
            raise UserError(f"{path} is a checkpoint outside of its run: {run} holds no {RECIPE}")
        return Origin(run, None, path)
    if (path / "config.json").is_file():
        return Origin(path.parent if (path.parent / RECIPE).is_file() else None, path, None)
    raise UserError(f"{path} is neither a training run nor one of its checkpoints nor a policy's folder")


def load_trained(origin: Origin) -> tuple[RocketForActionPrediction, RocketProcessor]:
    """The policy, LoRA merged, without an alignment head; and its processor."""
    if origin.policy is not None:
        model = RocketForActionPrediction.from_pretrained(origin.policy, alignment=None)
        return model, RocketProcessor.from_pretrained(origin.policy)
    model, processor = load_adapted(origin)
    return policy_of(model.config, merged_weights(model)), processor


def load_adapted(origin: Origin) -> tuple[RocketForActionPrediction, RocketProcessor]:
    """The model of a checkpoint as it trains, LoRA's layers beside the base's; the moving average where one is kept.

    Its alignment head is not that of the run: it is only there so that the same weights train.
    """
    recipe, checkpoint = origin.recipe, origin.checkpoint
    if recipe is None or checkpoint is None:
        raise UserError("only a run or one of its checkpoints can be put together from its base: give one of those")
    if recipe.run.quantize:
        raise UserError("the base of this run was in 4 bits, so its checkpoints stand on other weights: publish its "
                         f"{POLICY}/, merged")  # fmt: skip
    base = policy_folder(recipe.policy)
    config = policy_config(base, recipe)
    if recipe.alignment is not None:
        config = RocketConfig.from_dict(config.to_dict(), alignment=alignment_config(recipe, ANY_WIDTH))
    model = load_policy(base, config.alignment, recipe)
    make_trainable(model, recipe)
    values = read(checkpoint, "average" if recipe.run.ema is not None else "model")
    places = {name: weight for name, weight in trained(model) if not name.startswith(HEAD)}
    put(places, {name: value for name, value in values.items() if not name.startswith(HEAD)}, checkpoint)
    return model.eval(), load_processor(origin, recipe, base, config)


def load_trained_rocket2(origin: Origin) -> Rocket2ForActionPrediction:
    """The same of ROCKET-2, with the heads that its recipe keeps; it has no processor."""
    if origin.policy is not None:
        return Rocket2ForActionPrediction.from_pretrained(origin.policy)
    recipe, checkpoint = origin.recipe, origin.checkpoint
    if recipe is None or recipe.goals is None or checkpoint is None:
        raise UserError("this is neither a policy of ROCKET-2 nor a run that trains one, nor one of its checkpoints")
    model = open_policy(recipe, goal_policy_config(recipe))
    put(dict(trained(model)), read(checkpoint, "average" if recipe.run.ema is not None else "model"), checkpoint)
    return model.for_inference(recipe.goals.keep)


def load_processor(origin: Origin, recipe: Recipe, base: Path, config: RocketConfig) -> RocketProcessor:
    """That of the exported policy, or made again from the data."""
    assert origin.run is not None
    exported = origin.run / POLICY
    if (exported / "processor_config.json").is_file():
        return RocketProcessor.from_pretrained(exported)
    datasets = [RobotDataset(dataset, config, recipe.data.streaming) for dataset in recipe.data.datasets]
    return robot_processor(base, config, dataset_statistics(datasets))
