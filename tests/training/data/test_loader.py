"""A batch is a function of its positions: workers, ranks and interruptions do not change it."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

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

pytestmark = pytest.mark.needs_lerobot
AUGMENTATION = AugmentationConfig(crop_area=0.8, rotation=5, brightness=0.2, color_only=["wrist"])


@pytest.fixture(scope="module")
def config():
    return tiny_config("pi05")  # which reads the state in its prompt


@pytest.fixture(scope="module")
def datasets(stored, filmed, config):
    return [RobotDataset(DatasetConfig(id=str(folder)), config) for folder in (stored, filmed)]


def processor(config):
    return RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config), max_prompt_length=200)


def all_frames(data):
    return FrameRanges([data.frame_range(episode) for episode in data.episodes])


def loader(datasets, config, batch_size=8, workers=0, augmentation=AUGMENTATION, order=None, **shares):
    order = order or MixtureOrder([all_frames(data) for data in datasets], seed=1)
    settings = DataConfig(workers=workers, augmentation=augmentation)
    return make_loader(datasets, order, processor(config), config, settings, 5, batch_size, **shares)


def joined(batches):
    """Several batches as one."""

    def join(values):
        if isinstance(values[0], torch.Tensor):
            return torch.cat(values)
        return [torch.cat(parts) for parts in zip(*values, strict=True)]

    return {key: join([batch[key] for batch in batches]) for key in batches[0]}


def require_equal(one, other):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0, msg=key)


def test_a_batch_holds_what_the_processor_and_the_generators_give(datasets, config):
    made = processor(config)
    (batch,) = loader(datasets, config, batch_size=6, start_position=20, total=26)
    assert set(batch) == set(LoaderBatch.__annotations__) - {"features"}
    order = MixtureOrder([all_frames(data) for data in datasets], seed=1)
    for row, position in enumerate(range(20, 26)):
        dataset, index = order[position]
        sample = datasets[dataset].sample(index)
        inputs = made(sample["images"], sample["task"], sample["state"], sample["actions"])
        for key in ("state", "actions", "input_ids", "attention_mask", "camera_mask"):
            assert torch.equal(batch[key][row], inputs[key][0]), key
        for camera, picture in zip(batch["images"], sample["images"].values(), strict=True):
            assert torch.equal(camera[row], picture)
        for key in ("episode_index", "frame_index", "index", "action_is_pad"):
            assert torch.equal(batch[key][row], torch.as_tensor(sample[key])), key
        assert (batch["dataset"][row], batch["position"][row]) == (dataset, position)
        draw = sample_generator(5, position)
        drawn = torch.stack([draw_augmentation(AUGMENTATION, camera, draw) for camera in config.cameras])
        assert torch.equal(batch["augmentation"][row], drawn)
        assert torch.equal(batch["noise"][row], draw_noise((4, 8), torch.device("cpu"), draw))
        assert torch.equal(batch["time"][row], draw_time(1, torch.device("cpu"), draw)[0])


def test_two_ranks_read_together_what_one_reads(datasets, config):
    alone = list(loader(datasets, config, batch_size=8, total=32))
    ranks = [list(loader(datasets, config, batch_size=4, rank=rank, world=2, total=32)) for rank in (0, 1)]
    assert [len(alone), len(ranks[0]), len(ranks[1])] == [4, 4, 4]
    for whole, halves in zip(alone, zip(*ranks, strict=True), strict=True):
        require_equal(whole, joined(halves))


def test_a_run_goes_on_where_it_stopped_with_other_batches(datasets, config):
    whole = joined(list(loader(datasets, config, batch_size=8, total=40)))
    first = list(loader(datasets, config, batch_size=8, total=16))
    rest = [list(loader(datasets, config, batch_size=4, rank=rank, world=3, start_position=16, total=40))
            for rank in range(3)]  # fmt: skip
    in_order = [batch for step in zip(*rest, strict=True) for batch in step]
    require_equal(whole, joined(first + in_order))


def test_a_last_batch_holds_what_is_left(datasets, config):
    sizes = [[len(batch["position"]) for batch in loader(datasets, config, 4, rank=rank, world=2, total=11)]
             for rank in (0, 1)]  # fmt: skip
    assert sizes == [[4, 3], [4]]


def test_without_augmentation_and_noise_a_batch_has_neither(stored):
    config = tiny_config("openvla-oft")
    data = RobotDataset(DatasetConfig(id=str(stored)), config)
    (batch,) = loader([data], config, batch_size=2, total=2, augmentation=AugmentationConfig())
    assert not {"augmentation", "noise", "time", "features"} & set(batch)


def test_rows_of_a_feature_cache_come_with_their_frames(datasets, config):
    class Rows:
        def __init__(self, number):
            self.number = number

        def read(self, index):
            return {"maps": torch.tensor([self.number, index])}

    settings = DataConfig(workers=0)
    order = MixtureOrder([all_frames(data) for data in datasets])
    batches = make_loader(
        datasets, order, processor(config), config, settings, 0, 8, total=8, feature_caches=[Rows(0), Rows(1)]
    )
    (batch,) = batches
    assert torch.equal(batch["features"]["maps"], torch.stack([batch["dataset"], batch["index"]], dim=1))


@pytest.fixture(scope="module")
def spoilt(stored, tmp_path_factory):
    """The last picture of the wrist camera is cut short."""
    folder = shutil.copytree(stored, tmp_path_factory.mktemp("spoilt") / "spoilt")
    (file,) = (folder / "data").glob("*/*.parquet")
    table = pq.read_table(file)
    key = "observation.images.wrist"
    pictures = table[key].to_pylist()
    pictures[-1]["bytes"] = pictures[-1]["bytes"][:40]
    column = pa.array(pictures, type=table[key].type)
    pq.write_table(table.set_column(table.column_names.index(key), key, column), file)
    return folder


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_give_the_same_batches_and_one_sentence_of_what_is_wrong(workers, spoilt, filmed, config):
    """A worker takes seconds to start, so one loader shows both."""
    datasets = [RobotDataset(DatasetConfig(id=str(folder)), config) for folder in (filmed, spoilt)]
    order = MixtureOrder([all_frames(data) for data in datasets], seed=2)
    bad = next(position for position in range(216) if order[position] == (1, 53))
    total = (bad // 8 + 1) * 8
    alone = list(loader(datasets, config, order=order, total=total - 8))
    shared = iter(loader(datasets, config, order=order, total=total, workers=workers))
    for batch in alone:
        require_equal(batch, next(shared))
    with pytest.raises(ValueError) as caught:
        next(shared)
    sentence = str(caught.value)
    assert sentence.startswith("the picture of camera 'wrist' of spoilt at episode 3, frame 14 cannot be read: ")
    assert len(sentence.splitlines()) == 1


def test_pictures_of_one_camera_get_one_size(stored, config, tmp_path):
    larger = write_tiny_dataset(tmp_path / "larger", 1, 4, cameras={"front": (96, 128), "wrist": (32, 32)})
    other = write_tiny_dataset(tmp_path / "other", 1, 4, cameras={"front": (64, 64), "wrist": (32, 32)})
    datasets = [RobotDataset(DatasetConfig(id=str(folder)), config) for folder in (stored, larger)]
    order = MixtureOrder([all_frames(data) for data in datasets], weights=[1.0, 1.0])
    (batch,) = loader(datasets, config, total=8, order=order)
    assert batch["images"][0].shape == (8, 3, 48, 64)
    assert set(batch["dataset"].tolist()) == {0, 1}
    wrong = [datasets[0], RobotDataset(DatasetConfig(id=str(other)), config)]
    with pytest.raises(ValueError, match="camera 'front' has pictures of 64x64 in other and of 48x64 in"):
        loader(wrong, config, total=8)


def test_color_only_names_a_camera_of_the_policy(datasets, config):
    with pytest.raises(ValueError, match=r"color_only: the policy has no camera 'wirst'"):
        loader(datasets, config, total=8, augmentation=AugmentationConfig(crop_area=0.9, color_only=["wirst"]))
