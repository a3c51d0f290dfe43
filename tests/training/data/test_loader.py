"""Loader batches depend on their positions only, not on workers, ranks or interruptions."""

import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rocket_hf.errors import UserError
from rocket_hf.modeling.flow_matching import draw_noise, draw_time
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.data.augmentation import draw_augmentation
from rocket_hf.training.data.batches import LoaderBatch, sample_generator
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.loader import make_loader
from rocket_hf.training.data.mixture import FrameRanges, MixtureOrder
from rocket_hf.training.recipe import AugmentationConfig, DataConfig, DatasetConfig
from rocket_hf.training.vla.model_inputs import ModelInputs

pytestmark = pytest.mark.needs_lerobot
AUGMENTATION = AugmentationConfig(crop_area=0.8, rotation=5, brightness=0.2, color_only=["wrist"])


@pytest.fixture(scope="module")
def config():
    return tiny_config("pi05")  # its prompt contains the state


@pytest.fixture(scope="module")
def datasets(image_dataset, video_dataset, config):
    return [RobotDataset(DatasetConfig(id=str(folder)), config) for folder in (image_dataset, video_dataset)]


def processor(config):
    return RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config), max_prompt_length=200)


def all_frames(data):
    return FrameRanges([data.frame_range(episode) for episode in data.episodes])


def loader(datasets, config, batch_size=8, workers=0, augmentation=AUGMENTATION, order=None, **positions):
    order = order or MixtureOrder([all_frames(data) for data in datasets], seed=1)
    settings = DataConfig(workers=workers, augmentation=augmentation)
    return make_loader(datasets, order, processor(config), config, settings, 5, batch_size, **positions)


def concatenated(batches):
    """Return several batches as one."""

    def concatenate(values):
        if isinstance(values[0], torch.Tensor):
            return torch.cat(values)
        return [torch.cat(parts) for parts in zip(*values, strict=True)]

    return {key: concatenate([batch[key] for batch in batches]) for key in batches[0]}


def require_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0, msg=key)


def test_batch_contains_the_processors_outputs_and_the_generators_draws(datasets, config):
    policy_processor = processor(config)
    (batch,) = loader(datasets, config, batch_size=6, start_position=20, end_position=26)
    assert set(batch) == set(LoaderBatch.__annotations__) - {"features", "image_aspects", "action_mask"}
    order = MixtureOrder([all_frames(data) for data in datasets], seed=1)
    for row, position in enumerate(range(20, 26)):
        dataset, index = order[position]
        sample = datasets[dataset].sample(index)
        inputs = policy_processor(sample["images"], sample["task"], sample["state"], sample["actions"])
        for key in ("state", "actions", "input_ids", "attention_mask", "camera_mask"):
            assert torch.equal(batch[key][row], inputs[key][0]), key
        for images, image in zip(batch["images"], sample["images"].values(), strict=True):
            assert torch.equal(images[row], image)
        for key in ("episode_index", "frame_index", "index", "action_is_pad"):
            assert torch.equal(batch[key][row], torch.as_tensor(sample[key])), key
        assert (batch["dataset"][row], batch["position"][row]) == (dataset, position)
        generator = sample_generator(5, position)
        parameters = torch.stack([draw_augmentation(AUGMENTATION, camera, generator) for camera in config.cameras])
        assert torch.equal(batch["augmentation"][row], parameters)
        assert torch.equal(batch["noise"][row], draw_noise((4, 8), torch.device("cpu"), generator))
        assert torch.equal(batch["time"][row], draw_time(1, torch.device("cpu"), generator)[0])


def test_batch_has_the_geometry_of_one_camera_for_both(datasets, config):
    """The policy's cameras are front and wrist; the latter takes the place of a map here."""
    augmentation = replace(AUGMENTATION, color_only=[], same_geometry={"wrist": "front"})
    (batch,) = loader(datasets, config, augmentation=augmentation, end_position=8)
    front, wrist = (batch["augmentation"][:, config.cameras.index(camera)] for camera in ("front", "wrist"))
    assert torch.equal(front[:, :4], wrist[:, :4]) and front[:, 4].all() and not wrist[:, 4:].any()
    (usual,) = loader(datasets, config, augmentation=replace(AUGMENTATION, color_only=[]), end_position=8)
    assert torch.equal(usual["augmentation"][:, config.cameras.index("front")], front)
    assert torch.equal(usual["noise"], batch["noise"])


def test_two_ranks_together_read_the_batches_of_one_rank(datasets, config):
    single = list(loader(datasets, config, batch_size=8, end_position=32))
    ranks = [list(loader(datasets, config, batch_size=4, rank=rank, world_size=2, end_position=32)) for rank in (0, 1)]
    assert [len(single), len(ranks[0]), len(ranks[1])] == [4, 4, 4]
    for whole, halves in zip(single, zip(*ranks, strict=True), strict=True):
        require_equal(whole, concatenated(halves))


def test_run_resumes_at_the_same_sample_with_another_batch_size_and_rank_count(datasets, config):
    whole = concatenated(list(loader(datasets, config, batch_size=8, end_position=40)))
    first = list(loader(datasets, config, batch_size=8, end_position=16))
    rest = [list(loader(datasets, config, batch_size=4, rank=rank, world_size=3, start_position=16, end_position=40))
            for rank in range(3)]  # fmt: skip
    in_order = [batch for step in zip(*rest, strict=True) for batch in step]
    require_equal(whole, concatenated(first + in_order))


def test_last_batch_contains_the_remaining_samples(datasets, config):
    sizes = [[len(batch["position"]) for batch in loader(datasets, config, 4, rank=rank, world_size=2, end_position=11)]
             for rank in (0, 1)]  # fmt: skip
    assert sizes == [[4, 3], [4]]


def test_batch_has_no_augmentation_or_noise_if_neither_is_configured(image_dataset):
    config = tiny_config("openvla-oft")
    data = RobotDataset(DatasetConfig(id=str(image_dataset)), config)
    (batch,) = loader([data], config, batch_size=2, end_position=2, augmentation=AugmentationConfig())
    assert not {"augmentation", "noise", "time", "features"} & set(batch)


def test_batch_contains_the_feature_cache_rows_of_its_frames(datasets, config):
    class FakeFeatureCache:
        def __init__(self, dataset):
            self.dataset = dataset

        def read(self, index):
            return {"maps": torch.tensor([self.dataset, index])}

    settings = DataConfig(workers=0)
    order = MixtureOrder([all_frames(data) for data in datasets])
    batches = make_loader(
        datasets,
        order,
        processor(config),
        config,
        settings,
        0,
        8,
        end_position=8,
        feature_caches=[FakeFeatureCache(0), FakeFeatureCache(1)],
    )
    (batch,) = batches
    assert torch.equal(batch["features"]["maps"], torch.stack([batch["dataset"], batch["index"]], dim=1))


@pytest.fixture(scope="module")
def corrupted(image_dataset, tmp_path_factory):
    """Dataset whose last image of the wrist camera is truncated."""
    folder = shutil.copytree(image_dataset, tmp_path_factory.mktemp("corrupted") / "corrupted")
    (file,) = (folder / "data").glob("*/*.parquet")
    table = pq.read_table(file)
    key = "observation.images.wrist"
    images = table[key].to_pylist()
    images[-1]["bytes"] = images[-1]["bytes"][:40]
    column = pa.array(images, type=table[key].type)
    pq.write_table(table.set_column(table.column_names.index(key), key, column), file)
    return folder


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_return_the_same_batches_and_report_a_user_error_in_one_line(workers, corrupted, video_dataset, config):
    """One loader tests both, because a worker takes seconds to start."""
    datasets = [RobotDataset(DatasetConfig(id=str(folder)), config) for folder in (video_dataset, corrupted)]
    order = MixtureOrder([all_frames(data) for data in datasets], seed=2)
    bad = next(position for position in range(216) if order[position] == (1, 53))
    end = (bad // 8 + 1) * 8
    expected = list(loader(datasets, config, order=order, end_position=end - 8))
    batches = iter(loader(datasets, config, order=order, end_position=end, workers=workers))
    for batch in expected:
        require_equal(batch, next(batches))
    with pytest.raises(UserError) as caught:
        next(batches)
    message = str(caught.value)
    assert message.startswith("the image of camera 'wrist' of corrupted at episode 3, frame 14 cannot be read: ")
    assert len(message.splitlines()) == 1


def test_images_of_one_camera_have_one_size_in_all_datasets(image_dataset, config, tmp_path):
    larger = write_tiny_dataset(tmp_path / "larger", 1, 4, cameras={"front": (96, 128), "wrist": (32, 32)})
    other = write_tiny_dataset(tmp_path / "other", 1, 4, cameras={"front": (64, 64), "wrist": (32, 32)})
    datasets = [RobotDataset(DatasetConfig(id=str(folder)), config) for folder in (image_dataset, larger)]
    order = MixtureOrder([all_frames(data) for data in datasets], weights=[1.0, 1.0])
    (batch,) = loader(datasets, config, end_position=8, order=order)
    assert batch["images"][0].shape == (8, 3, 48, 64)
    assert set(batch["dataset"].tolist()) == {0, 1}
    wrong = [datasets[0], RobotDataset(DatasetConfig(id=str(other)), config)]
    with pytest.raises(ValueError, match="camera 'front' has images of 64x64 in other, but of 48x64 in"):
        loader(wrong, config, end_position=8)


def test_color_only_with_an_unknown_camera_is_refused(datasets, config):
    with pytest.raises(ValueError, match=r"color_only: the policy has no camera 'wirst'"):
        loader(datasets, config, end_position=8, augmentation=AugmentationConfig(crop_area=0.9, color_only=["wirst"]))


def test_bug_in_a_batch_keeps_its_traceback(datasets, config, monkeypatch):
    def broken(self, index):
        raise ValueError("a bug")

    monkeypatch.setattr(RobotDataset, "sample", broken)
    with pytest.raises(ValueError, match="a bug") as caught:
        next(iter(loader(datasets, config, end_position=8)))
    assert "broken" in [entry.name for entry in caught.traceback]


@pytest.mark.parametrize("family", ["pi0", "pi05", "smolvla", "openvla-oft"])
def test_training_inputs_equal_the_processors_inputs(image_dataset, video_dataset, family):
    """The loader and ModelInputs together apply the same preprocessing, in the same order, as `processor(...)`."""
    family_config = tiny_config(family)
    data = [RobotDataset(DatasetConfig(id=str(folder)), family_config) for folder in (image_dataset, video_dataset)]
    policy_processor = processor(family_config)
    model_inputs = ModelInputs(family_config, policy_processor, None, torch.device("cpu"))
    order = MixtureOrder([all_frames(dataset) for dataset in data], seed=1)
    plain = AugmentationConfig()
    (raw,) = loader(data, family_config, batch_size=5, augmentation=plain, start_position=7, end_position=12)
    batch, images, warp = model_inputs.inputs(raw)
    assert warp is None and [image.shape[0] for image in images] == [5] * len(family_config.cameras)
    for row, position in enumerate(range(7, 12)):
        dataset, index = order[position]
        sample = data[dataset].sample(index)
        expected = policy_processor(
            sample["images"], sample["task"], sample["state"], sample["actions"], sample["action_is_pad"]
        )
        assert {"images", "camera_mask", "state", "input_ids", "attention_mask", "actions", "action_is_pad"} == set(
            expected
        )
        for key, value in expected.items():
            assert batch[key].dtype == value.dtype, key
            assert torch.equal(batch[key][row], value[0]), key
