"""RobotDataset returns the samples of lerobot's own reader and reports damaged datasets in one line."""

import json
import shutil
import struct
import zlib

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rocket_hf.errors import UserError
from rocket_hf.tiny import tiny_config
from rocket_hf.training.data.dataset_frames import DatasetFrames
from rocket_hf.training.data.images import PyavReader, TorchcodecReader, load_torchcodec_decoder
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.recipe import DatasetConfig

pytestmark = pytest.mark.needs_lerobot
COMMIT = "c0ffee" * 6 + "c0ff"
CHUNK = 7  # so that chunks near the end of an episode are padded


def open_dataset(folder, config=None, **changes) -> RobotDataset:
    return RobotDataset(DatasetConfig(id=str(folder), **changes), config or tiny_config(chunk_size=CHUNK))


def to_uint8(image):
    return image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)


@pytest.mark.parametrize("kind", ["image_dataset", "video_dataset"])
def test_every_sample_equals_lerobots(kind, request):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder = request.getfixturevalue(kind)
    steps = {"action": [step / 10 for step in range(CHUNK)]}
    reference = LeRobotDataset("local/reference", root=folder, delta_timestamps=steps, return_uint8=True)
    data = open_dataset(folder)
    assert len(data) == len(reference) == 54
    for index in torch.randperm(54, generator=torch.Generator().manual_seed(0)).tolist():
        sample, other = data.sample(index), reference[index]
        assert torch.equal(sample["state"], other["observation.state"])
        assert torch.equal(sample["actions"], other["action"])
        assert torch.equal(sample["action_is_pad"], other["action_is_pad"])
        assert sample["task"] == other["task"]
        for key in ("episode_index", "frame_index", "index"):
            assert sample[key] == other[key]
        for camera, image in sample["images"].items():
            assert torch.equal(image, to_uint8(other[f"observation.images.{camera}"])), (camera, index)


@pytest.mark.parametrize("kind", ["image_dataset", "video_dataset"])
def test_images_do_not_depend_on_the_order_of_reading(kind, request):
    data = open_dataset(request.getfixturevalue(kind))
    in_order = data.read_images(range(54))
    assert [images.shape for images in in_order] == [(54, 3, 48, 64), (54, 3, 32, 32)]
    for one, other in zip(in_order, data.read_images(range(53, -1, -1)), strict=True):
        assert torch.equal(one, other.flip(0))
    for one, other in zip(in_order, data.read_images(range(0, 54, 5)), strict=True):
        assert torch.equal(one[::5], other)


@pytest.mark.parametrize("kind", ["image_dataset", "video_dataset"])
def test_images_in_memory_equal_those_in_the_files(kind, request):
    folder = request.getfixturevalue(kind)
    config = DatasetConfig(id=str(folder), episodes=[1, 3])
    in_memory, on_disk = RobotDataset(config, tiny_config(), in_memory=True), RobotDataset(config, tiny_config())
    frames = [index for episode in config.episodes for index in in_memory.frame_range(episode)]
    assert all(reader.pixels.shape[0] == len(frames) for reader in in_memory.image_readers.values())
    for one, other in zip(in_memory.read_images(frames), on_disk.read_images(frames), strict=True):
        assert torch.equal(one, other)


def test_cameras_have_the_policys_order(image_dataset):
    data = open_dataset(image_dataset, tiny_config(cameras=["wrist", "front"]))
    assert list(data.camera_keys.items()) == [
        ("wrist", "observation.images.wrist"),
        ("front", "observation.images.front"),
    ]
    assert [images.shape[1:] for images in data.read_images([3])] == [(3, 32, 32), (3, 48, 64)]


def test_cameras_with_other_names_are_matched_in_order_or_by_the_recipe(image_dataset):
    left_and_right = tiny_config(cameras=["left", "right"])
    in_order = open_dataset(image_dataset, left_and_right)
    assert list(in_order.camera_keys.values()) == ["observation.images.front", "observation.images.wrist"]
    one = tiny_config(cameras=["top"])
    assert open_dataset(image_dataset, one, cameras={"top": "observation.images.wrist"}).camera_sizes == {
        "top": (32, 32)
    }


def test_absent_camera_is_black_and_masked(image_dataset):
    data = open_dataset(image_dataset, tiny_config(cameras=["front", "wrist", "rear"]), cameras={"rear": ""})
    assert data.camera_mask == [True, True, False]
    assert data.sample(0)["images"]["rear"].sum() == 0
    assert data.sample(0)["images"]["rear"].shape == (3, 48, 64)


def test_selected_episodes_keep_their_indices(image_dataset):
    data = open_dataset(image_dataset, episodes=[3, 1])
    assert data.episodes == [1, 3]
    assert list(data.frame_range(1)) == list(range(12, 27))
    assert data.describe_frame(13) == "episode 1, frame 1"


def test_dataset_and_feature_cache_have_the_same_identity(image_dataset):
    data, frames = open_dataset(image_dataset), DatasetFrames(str(image_dataset))
    assert (data.id, data.revision, data.fingerprint) == (frames.dataset, frames.revision, frames.fingerprint)


@pytest.fixture
def hub(video_dataset, tmp_path, monkeypatch):
    """Folder of one commit of someone/robot-data in the Hub cache of a machine without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("lerobot.utils.constants.HF_LEROBOT_HUB_CACHE", tmp_path)
    repository = tmp_path / "datasets--someone--robot-data"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v3.0").write_text(COMMIT)
    return shutil.copytree(video_dataset, repository / "snapshots" / COMMIT)


def test_dataset_on_the_hub_is_identified_by_its_commit(hub, video_dataset):
    data = open_dataset("someone/robot-data")
    assert (data.id, data.revision) == ("someone/robot-data", COMMIT)
    for one, other in zip(data.read_images([3, 40]), open_dataset(video_dataset).read_images([3, 40]), strict=True):
        assert torch.equal(one, other)


def test_streamed_videos_are_not_downloaded(hub, video_dataset, monkeypatch):
    shutil.rmtree(hub / "videos")
    data = RobotDataset(DatasetConfig(id="someone/robot-data"), tiny_config(), streaming=True)
    addresses = {camera: data.image_readers[key].files for camera, key in data.camera_keys.items()}
    name = "videos/observation.images.wrist/chunk-000/file-000.mp4"
    assert addresses["wrist"] == [f"hf://datasets/someone/robot-data@{COMMIT}/{name}"]
    for key, reader in data.image_readers.items():  # the same files at an address that needs no network
        reader.files = [f"memory://streamed/{key}.mp4"]
        (video,) = (video_dataset / "videos" / key).glob("*/*.mp4")
        fsspec.filesystem("memory").pipe(reader.files[0], video.read_bytes())
    for one, other in zip(
        data.read_images([3, 40, 5]), open_dataset(video_dataset).read_images([3, 40, 5]), strict=True
    ):
        assert torch.equal(one, other)


def test_both_video_decoders_return_the_same_frames(video_dataset):
    if load_torchcodec_decoder() is None:
        pytest.skip("torchcodec does not load on this machine: run `rocket-hf doctor` for the reason")
    (video,) = (video_dataset / "videos" / "observation.images.front").glob("*/*.mp4")
    one, other = TorchcodecReader(str(video)), PyavReader(str(video))
    for frame in (0, 1, 30, 7, 8, 53):
        assert torch.equal(one.frame(frame / 10), other.frame(frame / 10))
        for reader in (one, other):
            with pytest.raises(UserError, match="has no frame at"):
                reader.frame(frame / 10 + 0.03)


# Errors that a user can fix


def expect_user_error(folder, *parts, config=None, **changes):
    with pytest.raises(UserError) as caught:
        open_dataset(folder, config, **changes)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in parts:
        assert part in message, message


def rewrite(folder, **columns):
    """Replace columns in the only data file of a dataset; each value is a function of the old column."""
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


def test_folder_without_a_dataset_is_refused(tmp_path, monkeypatch):
    expect_user_error(tmp_path / "nowhere", "nowhere", "neither a local folder nor a Hub repository")
    expect_user_error(tmp_path, "not a LeRobot dataset", "meta/info.json")


def test_unreachable_hub_is_reported(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    expect_user_error("someone/robot-data", "someone/robot-data", "Hub cannot be reached: unset it")


def test_error_for_an_old_format_contains_the_conversion_command(dataset_copy):
    change_info(dataset_copy, codebase_version="v2.1")
    expect_user_error(dataset_copy, "v2.1", "convert_dataset_v21_to_v30")


@pytest.mark.parametrize("content", ["{", "[]", "\u00e9".encode("latin-1")])
def test_unreadable_info_file_is_reported(content, dataset_copy):
    (dataset_copy / "meta" / "info.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    expect_user_error(dataset_copy, "meta/info.json", "cannot be read")


@pytest.mark.parametrize("file", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet",
                                  "data/chunk-000/file-000.parquet"])  # fmt: skip
def test_truncated_file_is_reported(file, dataset_copy):
    content = (dataset_copy / file).read_bytes()
    (dataset_copy / file).write_bytes(content[: len(content) // 2])
    expect_user_error(dataset_copy, file.removeprefix("meta/episodes/"), "cannot be read")


def test_empty_dataset_is_refused(dataset_copy):
    change_info(dataset_copy, total_episodes=0, total_frames=0)
    expect_user_error(dataset_copy, "is empty")


def test_dataset_without_tasks_is_refused(dataset_copy):
    (dataset_copy / "meta" / "tasks.parquet").unlink()
    expect_user_error(dataset_copy, "has no tasks", "tasks.parquet")


def test_unknown_cameras_are_reported(image_dataset):
    option = '--set "data.datasets.N.cameras={rear: KEY}"'
    expect_user_error(image_dataset, "no camera 'rear'", option, config=tiny_config(cameras=["front", "rear"]))
    expect_user_error(
        image_dataset, "did you mean 'observation.images.front'?", cameras={"front": "observation.images.frnt"}
    )
    expect_user_error(
        image_dataset, "no camera 'frnt'", "did you mean 'front'?", cameras={"frnt": "observation.images.front"}
    )
    expect_user_error(image_dataset, "every camera", cameras={"front": "", "wrist": ""})


def test_dimensions_that_differ_from_the_policys_are_refused(image_dataset):
    expect_user_error(image_dataset, "state", "6 dimensions", "state_dim=4", config=tiny_config(state_dim=4))
    expect_user_error(image_dataset, "action", "5 dimensions", "action_dim=7", config=tiny_config(action_dim=7))


def test_unusable_columns_are_reported(image_dataset):
    expect_user_error(image_dataset, "no column 'actions'", "did you mean 'action'?", action="actions")
    expect_user_error(
        image_dataset, "'observation.images.front'", "does not hold numbers", state="observation.images.front"
    )


def test_unknown_episodes_are_refused(image_dataset):
    expect_user_error(image_dataset, "no episode 4", "0..3", episodes=[0, 4])
    expect_user_error(image_dataset, "is empty", episodes=[])


@pytest.mark.parametrize(("column", "value"), [("action", float("nan")), ("observation__state", float("inf"))])
def test_values_of_selected_episodes_must_be_finite(column, value, dataset_copy):
    rewrite(dataset_copy, **{column: at(13, value)})
    expect_user_error(dataset_copy, "not finite", "episode 1, frame 1")
    assert open_dataset(dataset_copy, episodes=[0, 2]).episodes == [0, 2]


def test_data_files_that_contradict_the_episode_table_are_refused(dataset_copy):
    rewrite(dataset_copy, index=at(5, 6))
    expect_user_error(dataset_copy, "out of order")


def png_header(width: int, height: int) -> bytes:
    """Return a tiny PNG file that claims to be of this size."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_image_above_the_size_limit_of_pillow_is_reported(dataset_copy):
    (file,) = (dataset_copy / "data").glob("*/*.parquet")
    table, key = pq.read_table(file), "observation.images.front"
    images = table[key].to_pylist()
    images[13] = images[13] | {"bytes": png_header(60_000, 60_000)}
    column = pa.array(images, type=table[key].type)
    pq.write_table(table.set_column(table.column_names.index(key), key, column), file)
    data = open_dataset(dataset_copy)
    with pytest.raises(
        UserError, match=r"episode 1, frame 1 .* exceeds limit .* record the episode again with smaller"
    ):
        data.sample(13)


def test_damaged_and_missing_videos_are_reported(video_dataset, tmp_path):
    folder = shutil.copytree(video_dataset, tmp_path / "film")
    video = folder / "videos" / "observation.images.wrist" / "chunk-000" / "file-000.mp4"
    video.write_bytes(b"no video")
    with pytest.raises(UserError, match=r"camera 'wrist' of film at episode 1, frame 2 .* cannot be decoded"):
        open_dataset(folder).sample(14)
    video.unlink()
    expect_user_error(folder, "lacks the video", "observation.images.wrist/chunk-000/file-000.mp4")
