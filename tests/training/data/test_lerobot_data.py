"""A dataset gives what lerobot's own reader gives, and says what is wrong with it in one sentence."""

import json
import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rocket_hf.tiny import tiny_config
from rocket_hf.training.data.dataset_frames import DatasetFrames
from rocket_hf.training.data.images import PyavReader, TorchcodecReader, load_torchcodec_decoder
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.recipe import DatasetConfig

pytestmark = pytest.mark.needs_lerobot
COMMIT = "c0ffee" * 6 + "c0ff"
CHUNK = 7  # longer than what is left of an episode at its end


def opened(folder, config=None, **changes) -> RobotDataset:
    return RobotDataset(DatasetConfig(id=str(folder), **changes), config or tiny_config(chunk_size=CHUNK))


def as_bytes(picture):
    return picture if picture.dtype == torch.uint8 else (picture * 255).round().to(torch.uint8)


@pytest.mark.parametrize("kind", ["stored", "filmed"])
def test_every_sample_is_the_one_that_lerobot_gives(kind, request):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder = request.getfixturevalue(kind)
    steps = {"action": [step / 10 for step in range(CHUNK)]}
    theirs = LeRobotDataset("local/theirs", root=folder, delta_timestamps=steps, return_uint8=True)
    ours = opened(folder)
    assert len(ours) == len(theirs) == 54
    for index in torch.randperm(54, generator=torch.Generator().manual_seed(0)).tolist():
        mine, other = ours.sample(index), theirs[index]
        assert torch.equal(mine["state"], other["observation.state"])
        assert torch.equal(mine["actions"], other["action"])
        assert torch.equal(mine["action_is_pad"], other["action_is_pad"])
        assert mine["task"] == other["task"]
        for key in ("episode_index", "frame_index", "index"):
            assert mine[key] == other[key]
        for camera, picture in mine["images"].items():
            assert torch.equal(picture, as_bytes(other[f"observation.images.{camera}"])), (camera, index)


@pytest.mark.parametrize("kind", ["stored", "filmed"])
def test_pictures_do_not_depend_on_the_order_in_which_they_are_read(kind, request):
    data = opened(request.getfixturevalue(kind))
    forwards = data.read_images(range(54))
    assert [picture.shape for picture in forwards] == [(54, 3, 48, 64), (54, 3, 32, 32)]
    for one, other in zip(forwards, data.read_images(range(53, -1, -1)), strict=True):
        assert torch.equal(one, other.flip(0))
    for one, other in zip(forwards, data.read_images(range(0, 54, 5)), strict=True):
        assert torch.equal(one[::5], other)


@pytest.mark.parametrize("kind", ["stored", "filmed"])
def test_pictures_in_memory_are_those_of_the_files(kind, request):
    folder = request.getfixturevalue(kind)
    config = DatasetConfig(id=str(folder), episodes=[1, 3])
    kept, read = RobotDataset(config, tiny_config(), in_memory=True), RobotDataset(config, tiny_config())
    frames = [index for episode in config.episodes for index in kept.frame_range(episode)]
    assert all(source.pixels.shape[0] == len(frames) for source in kept.image_readers.values())
    for ours, theirs in zip(kept.read_images(frames), read.read_images(frames), strict=True):
        assert torch.equal(ours, theirs)


def test_a_policy_sees_its_cameras_in_its_own_order(stored):
    data = opened(stored, tiny_config(cameras=["wrist", "front"]))
    assert list(data.camera_keys.items()) == [
        ("wrist", "observation.images.wrist"),
        ("front", "observation.images.front"),
    ]
    assert [picture.shape[1:] for picture in data.read_images([3])] == [(3, 32, 32), (3, 48, 64)]


def test_cameras_with_other_names_are_taken_in_order_or_as_the_recipe_says(stored):
    left_and_right = tiny_config(cameras=["left", "right"])
    in_order = opened(stored, left_and_right)
    assert list(in_order.camera_keys.values()) == ["observation.images.front", "observation.images.wrist"]
    one = tiny_config(cameras=["top"])
    assert opened(stored, one, cameras={"top": "observation.images.wrist"}).camera_sizes == {"top": (32, 32)}


def test_an_absent_camera_is_black_and_masked(stored):
    data = opened(stored, tiny_config(cameras=["front", "wrist", "rear"]), cameras={"rear": ""})
    assert data.camera_mask == [True, True, False]
    assert data.sample(0)["images"]["rear"].sum() == 0
    assert data.sample(0)["images"]["rear"].shape == (3, 48, 64)


def test_chosen_episodes_keep_their_numbers(stored):
    data = opened(stored, episodes=[3, 1])
    assert data.episodes == [1, 3]
    assert list(data.frame_range(1)) == list(range(12, 27))
    assert data.describe_frame(13) == "episode 1, frame 1"


def test_a_feature_cache_knows_the_dataset_again(stored):
    ours, teachers = opened(stored), DatasetFrames(str(stored))
    assert (ours.id, ours.revision, ours.fingerprint) == (teachers.dataset, teachers.revision, teachers.fingerprint)


@pytest.fixture
def hub(filmed, tmp_path, monkeypatch):
    """A machine without a network, in whose cache lies one commit of someone/robot-data."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("lerobot.utils.constants.HF_LEROBOT_HUB_CACHE", tmp_path)
    repository = tmp_path / "datasets--someone--robot-data"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v3.0").write_text(COMMIT)
    return shutil.copytree(filmed, repository / "snapshots" / COMMIT)


def test_a_dataset_of_the_hub_is_named_by_its_commit(hub, filmed):
    data = opened("someone/robot-data")
    assert (data.id, data.revision) == ("someone/robot-data", COMMIT)
    for one, other in zip(data.read_images([3, 40]), opened(filmed).read_images([3, 40]), strict=True):
        assert torch.equal(one, other)


def test_streamed_videos_are_not_downloaded(hub, filmed, monkeypatch):
    shutil.rmtree(hub / "videos")
    data = RobotDataset(DatasetConfig(id="someone/robot-data"), tiny_config(), streaming=True)
    addresses = {camera: data.image_readers[key].files for camera, key in data.camera_keys.items()}
    name = "videos/observation.images.wrist/chunk-000/file-000.mp4"
    assert addresses["wrist"] == [f"hf://datasets/someone/robot-data@{COMMIT}/{name}"]
    for key, source in data.image_readers.items():  # the same files at another address, which needs no network
        source.files = [f"memory://streamed/{key}.mp4"]
        (video,) = (filmed / "videos" / key).glob("*/*.mp4")
        fsspec.filesystem("memory").pipe(source.files[0], video.read_bytes())
    for one, other in zip(data.read_images([3, 40, 5]), opened(filmed).read_images([3, 40, 5]), strict=True):
        assert torch.equal(one, other)


def test_both_video_decoders_give_the_same_pictures(filmed):
    if load_torchcodec_decoder() is None:
        pytest.skip("torchcodec does not load here: `rocket-hf doctor` says why")
    (video,) = (filmed / "videos" / "observation.images.front").glob("*/*.mp4")
    one, other = TorchcodecReader(str(video)), PyavReader(str(video))
    for frame in (0, 1, 30, 7, 8, 53):
        assert torch.equal(one.frame(frame / 10), other.frame(frame / 10))
        for reader in (one, other):
            with pytest.raises(ValueError, match="has no frame at"):
                reader.frame(frame / 10 + 0.03)


# What a user can mend


def refused(folder, *parts, config=None, **changes):
    with pytest.raises(ValueError) as caught:
        opened(folder, config, **changes)
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1
    for part in parts:
        assert part in sentence, sentence


def rewrite(folder, **columns):
    """The only data file of a dataset, with columns that a function makes of the old ones."""
    (file,) = (folder / "data").glob("*/*.parquet")
    table = pq.read_table(file)
    for name, change in columns.items():
        name = name.replace("__", ".")
        values = np.stack(table[name].to_numpy())
        changed = pa.array(change(values.copy()).tolist(), type=table[name].type)
        table = table.set_column(table.column_names.index(name), name, changed)
    pq.write_table(table, file)


def change_info(folder, **changes):
    file = folder / "meta" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def at(row, value):
    def change(values):
        values[row] = value
        return values

    return change


def test_there_must_be_a_dataset(tmp_path, monkeypatch):
    refused(tmp_path / "nowhere", "nowhere", "neither a local folder nor a Hub repository")
    refused(tmp_path, "no LeRobot dataset", "meta/info.json")


def test_an_unreachable_hub_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("someone/robot-data", "someone/robot-data", "Hub cannot be reached: unset it")


def test_an_old_format_names_the_command_that_converts_it(copied):
    change_info(copied, codebase_version="v2.1")
    refused(copied, "v2.1", "convert_dataset_v21_to_v30")


def test_a_broken_description_is_named(copied):
    (copied / "meta" / "info.json").write_text("{")
    refused(copied, "meta/info.json", "cannot be read")


@pytest.mark.parametrize("file", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet",
                                  "data/chunk-000/file-000.parquet"])  # fmt: skip
def test_a_file_that_was_cut_short_is_named(file, copied):
    whole = (copied / file).read_bytes()
    (copied / file).write_bytes(whole[: len(whole) // 2])
    refused(copied, file.removeprefix("meta/episodes/"), "cannot be read")


def test_an_empty_dataset_is_refused(copied):
    change_info(copied, total_episodes=0, total_frames=0)
    refused(copied, "is empty")


def test_tasks_must_be_there(copied):
    (copied / "meta" / "tasks.parquet").unlink()
    refused(copied, "has no tasks", "tasks.parquet")


def test_a_camera_that_the_dataset_lacks_is_named(stored):
    refused(stored, "no camera 'rear'", "datasets.cameras", config=tiny_config(cameras=["front", "rear"]))
    refused(stored, "did you mean 'observation.images.front'?", cameras={"front": "observation.images.frnt"})
    refused(stored, "no camera 'frnt'", "did you mean 'front'?", cameras={"frnt": "observation.images.front"})
    refused(stored, "every camera", cameras={"front": "", "wrist": ""})


def test_dimensions_must_be_the_policys(stored):
    refused(stored, "state", "6 dimensions", "state_dim=4", config=tiny_config(state_dim=4))
    refused(stored, "action", "5 dimensions", "action_dim=7", config=tiny_config(action_dim=7))


def test_a_column_that_is_missing_is_named(stored):
    refused(stored, "no column 'actions'", "did you mean 'action'?", action="actions")


def test_episodes_must_exist(stored):
    refused(stored, "no episode 4", "0..3", episodes=[0, 4])
    refused(stored, "is empty", episodes=[])


@pytest.mark.parametrize(("column", "value"), [("action", float("nan")), ("observation__state", float("inf"))])
def test_numbers_must_be_finite_in_the_chosen_episodes(column, value, copied):
    rewrite(copied, **{column: at(13, value)})
    refused(copied, "not finite", "episode 1, frame 1")
    assert opened(copied, episodes=[0, 2]).episodes == [0, 2]


def test_data_must_agree_with_the_table_of_episodes(copied):
    rewrite(copied, index=at(5, 6))
    refused(copied, "out of order")


def test_a_video_that_is_missing_is_named(filmed, tmp_path):
    folder = shutil.copytree(filmed, tmp_path / "film")
    video = folder / "videos" / "observation.images.wrist" / "chunk-000" / "file-000.mp4"
    video.write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"camera 'wrist' of film at episode 1, frame 2 .* cannot be decoded"):
        opened(folder).sample(14)
    video.unlink()
    refused(folder, "lacks the video", "observation.images.wrist/chunk-000/file-000.mp4")
