"""Tests of the lerobot plugin: published policies in lerobot-eval and lerobot-train."""

import json
import sys
from importlib.metadata import distributions

import pytest
import torch

from rocket_hf.evaluation.rollouts import rollout
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny_dataset import write_tiny_dataset

from ..evaluation.policies import export_pushing_policy

pytestmark = pytest.mark.needs_lerobot
TASKS, EPISODES, SEED, STEPS = ["button-press-v3"], 2, 100_000, 45


@pytest.fixture(scope="module", autouse=True)
def _plugins():
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return export_pushing_policy(tmp_path_factory.mktemp("published") / "policy", spread=0.4)


def load(folder, *options):
    """Load a policy and its processor pipelines as lerobot's tools do."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.envs.factory import make_env_config
    from lerobot.policies import make_policy, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu", *options])
    config.pretrained_path = folder
    policy = make_policy(config, env_cfg=make_env_config("rocket_metaworld"))
    overrides = {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}}
    return policy, *make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=overrides)


def observation(count=2):
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, 48, 48, generator=draw)
    return {
        "observation.images.corner2": image,
        "observation.images.gripperPOV": image.flip(-1),
        "observation.state": torch.randn(count, 4, generator=draw),
        "task": ["press the button", "open the drawer"][:count],
    }


def direct_actions(folder, sample):
    """Return the actions of the policy and processor of rocket_hf, in robot units."""
    policy, processor = RocketForActionPrediction.from_pretrained(folder), RocketProcessor.from_pretrained(folder)
    images = {camera: sample[f"observation.images.{camera}"] for camera in policy.config.cameras}
    inputs = processor(images=images, task=sample["task"], state=sample["observation.state"])
    return processor.unnormalize_actions(policy.predict_action_chunk(**inputs))


def test_lerobot_discovers_plugin_by_its_name():
    from lerobot.configs import PreTrainedConfig
    from lerobot.envs import EnvConfig

    assert "lerobot_policy_rocket" in {distribution.metadata["Name"] for distribution in distributions()}
    assert PreTrainedConfig.get_choice_class("rocket").__module__ == "lerobot_policy_rocket.configuration_rocket"
    assert "rocket_metaworld" in EnvConfig.get_known_choices()


def test_published_policy_gives_same_actions_in_lerobot(published):
    policy, preprocess, postprocess = load(published)
    expected = direct_actions(published, observation())
    for step in range(policy.config.chunk_size + 1):
        action = postprocess(policy.select_action(preprocess(observation())))
        torch.testing.assert_close(action, expected[:, step % policy.config.chunk_size], atol=1e-5, rtol=1e-5)


def test_n_action_steps_limits_executed_actions_of_chunk(published):
    policy, preprocess, postprocess = load(published, "--n_action_steps=1")
    actions = [postprocess(policy.select_action(preprocess(observation()))) for _ in range(2)]
    torch.testing.assert_close(actions[0], actions[1])
    with pytest.raises(ValueError, match=r"n_action_steps must lie in 1\.\.chunk_size=4"):
        load(published, "--n_action_steps=5")


def test_masked_action_dimensions_are_not_normalized(tmp_path):
    from ..evaluation.policies import pushing_policy

    policy, processor = pushing_policy()
    statistics = {part: dict(values) for part, values in processor.statistics.items()}
    statistics["action"]["mask"] = [True, True, True, False]
    masked = RocketProcessor.for_config(policy.config, processor.tokenizer, statistics, max_prompt_length=128)
    from rocket_hf.export.policy_folder import export_policy

    folder = export_policy(policy, masked, tmp_path / "masked")
    lerobot_policy, preprocess, postprocess = load(folder)
    action = postprocess(lerobot_policy.select_action(preprocess(observation())))
    torch.testing.assert_close(action, direct_actions(folder, observation())[:, 0], atol=1e-5, rtol=1e-5)


def test_clipped_states_and_training_actions_are_clipped_in_lerobot(tmp_path):
    """lerobot's own normalizer does not clip, so the policy does."""
    from rocket_hf.export.policy_folder import export_policy

    from ..evaluation.policies import pushing_policy

    modes = {"state_normalization": "min_max", "action_normalization": "min_max", "clip_normalized": True}
    policy, processor = pushing_policy(**modes)
    limits = {"min": [-0.1] * 4, "max": [0.1] * 4}
    clipping = RocketProcessor.for_config(
        policy.config, processor.tokenizer, {"state": limits, "action": limits}, max_prompt_length=128
    )
    folder = export_policy(policy, clipping, tmp_path / "clipped")
    lerobot_policy, preprocess, postprocess = load(folder)
    sample = observation()
    assert clipping.normalize_state(sample["observation.state"]).abs().max() == 1
    action = postprocess(lerobot_policy.select_action(preprocess(sample)))
    torch.testing.assert_close(action, direct_actions(folder, sample)[:, 0], atol=1e-5, rtol=1e-5)

    chunk = torch.full((2, 4, 4), 9.0)
    batch = sample | {"action": chunk, "action_is_pad": torch.zeros(2, 4, dtype=torch.bool)}
    loss, _ = lerobot_policy(preprocess(batch))
    at_the_limit, _ = lerobot_policy(preprocess(batch | {"action": torch.full_like(chunk, 0.1)}))
    torch.testing.assert_close(loss, at_the_limit)


def test_loss_equals_rocket_hf_and_saved_policy_loads(published, tmp_path):
    policy, preprocess, _ = load(published)
    chunk = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
    is_pad = torch.tensor([[False] * 4, [False, False, True, True]])
    batch = preprocess(observation() | {"action": chunk, "action_is_pad": is_pad})
    loss, parts = policy(batch)
    loss.backward()
    model, processor = RocketForActionPrediction.from_pretrained(published), RocketProcessor.from_pretrained(published)
    sample = observation()
    images = {camera: sample[f"observation.images.{camera}"] for camera in model.config.cameras}
    inputs = processor(images, sample["task"], sample["observation.state"], actions=chunk, action_is_pad=is_pad)
    losses = model(**inputs).losses
    assert parts == pytest.approx({name: value.item() for name, value in losses.items()}, rel=1e-5)
    assert loss.item() == pytest.approx(sum(parts.values()))
    assert policy.get_optim_params()

    policy.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(direct_actions(tmp_path / "saved", sample), direct_actions(published, sample))
    torch.testing.assert_close(load(tmp_path / "saved")[0].state_dict(), policy.state_dict())


def test_policy_of_another_robot_is_rejected_or_adapted(published):
    from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig

    policy_class = type(load(published)[0])
    config = PreTrainedConfig.from_pretrained(published, cli_overrides=["--device=cpu"])
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    with pytest.raises(ValueError, match="the policy has 4 action dimensions, but the dataset or environment has 7"):
        policy_class.from_pretrained(published, config=config)

    config = PreTrainedConfig.get_choice_class("rocket")(device="cpu", chunk_size=4)
    config.input_features = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
        "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    stats = {
        name: {"mean": torch.zeros(size), "std": torch.ones(size)}
        for name, size in (("observation.state", 3), ("action", 2))
    }
    policy = policy_class.from_pretrained(published, config=config, dataset_stats=stats)
    assert (policy.model.config.cameras, policy.model.config.action_dim) == (["image"], 2)
    assert policy.processor.max_prompt_length == 128, "images and prompts must be those of the base policy"
    sample = {"observation.image": torch.rand(1, 3, 32, 32), "observation.state": torch.zeros(1, 3), "task": ["go"]}
    assert policy.select_action(sample).shape == (1, 2)


def test_lerobot_eval_counts_same_successes(published, tmp_path, monkeypatch):
    """Compare the successes from equal initial states; the policy presses the button only from some of them."""
    from lerobot.scripts import lerobot_eval

    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", [
        "lerobot-eval", f"--policy.path={published}", "--policy.device=cpu", "--env.type=rocket_metaworld",
        f"--env.task={','.join(TASKS)}", f"--env.episode_length={STEPS}", f"--eval.n_episodes={EPISODES}",
        "--eval.batch_size=2", "--eval.use_async_envs=false", f"--seed={SEED}", f"--output_dir={out}",
    ])  # fmt: skip
    lerobot_eval.main()
    results = json.loads((out / "eval_info.json").read_text())["per_task"]
    policy, processor = RocketForActionPrediction.from_pretrained(published), RocketProcessor.from_pretrained(published)
    episodes = rollout(policy, processor, "metaworld", TASKS, EPISODES, first_seed=SEED, max_steps=STEPS, workers=0)
    assert results[0]["metrics"]["successes"] == [episode.success for episode in episodes] == [True, False]


@pytest.mark.slow
def test_lerobot_train_adapts_policy_to_dataset_and_resumes_from_it(published, tmp_path, monkeypatch):
    """Train for another robot's dataset, train the saved policy again, and load it with rocket_hf."""
    from lerobot.scripts import lerobot_train

    write_tiny_dataset(tmp_path / "data")
    common = [
        "--policy.device=cpu", "--policy.push_to_hub=false", "--dataset.repo_id=tiny/data",
        f"--dataset.root={tmp_path / 'data'}", "--steps=2", "--batch_size=2", "--num_workers=0",
        "--save_freq=2", "--log_freq=1",
    ]  # fmt: skip
    options = {
        "first": ["--policy.type=rocket", f"--policy.pretrained_path={published}", "--policy.chunk_size=4"],
        "second": [f"--policy.path={tmp_path / 'first/checkpoints/last/pretrained_model'}"],
    }
    for name, own in options.items():
        monkeypatch.setattr(sys, "argv", ["lerobot-train", *own, *common, f"--output_dir={tmp_path / name}"])
        lerobot_train.main()
    saved = tmp_path / "second/checkpoints/last/pretrained_model"
    policy, processor = RocketForActionPrediction.from_pretrained(saved), RocketProcessor.from_pretrained(saved)
    config = policy.config
    assert (config.cameras, config.state_dim, config.action_dim) == (["front", "wrist"], 6, 5)
    assert processor.max_prompt_length == 128
    stats = json.loads((tmp_path / "data/meta/stats.json").read_text())
    assert processor.statistics["action"]["mean"] == pytest.approx(stats["action"]["mean"])
