"""Reading a feature cache: features equal the live teacher's, or an error names the file."""

import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from rocket_hf.errors import UserError
from rocket_hf.teachers.cache_manifest import Manifest
from rocket_hf.teachers.cache_shards import shard_path, verify_shard
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.registration import WHOLE_IMAGE, Registration, register_features
from rocket_hf.teachers.scene import scene_images

from .conftest import LAYERS, ROWS, RandomFrames, build_cache, random_image, read_files


def read_features(cache: FeatureCache, indices: Sequence[int] = range(ROWS)) -> dict[int, Tensor]:
    return cache.decode(default_collate([cache.read(index) for index in indices])).maps


# Content


def test_bf16_cache_equals_rounded_live_features(caches, live_features):
    cache = FeatureCache(caches["bf16"])
    order = torch.randperm(ROWS).tolist()
    for layer, found in read_features(cache, order).items():
        torch.testing.assert_close(found, live_features[layer][order], rtol=2**-8, atol=1e-5)
    assert (cache.grid, cache.width, len(cache)) == ((2, 4), 32, ROWS)


def test_int8_cache_keeps_direction_of_live_features(caches, live_features):
    for layer, found in read_features(FeatureCache(caches["int8"])).items():
        assert torch.cosine_similarity(found, live_features[layer], dim=-1).mean() >= 0.999


def test_projected_cache_equals_projected_live_features_and_keeps_stated_share(caches, live_features):
    cache = FeatureCache(caches["projected"])
    assert cache.width == 16
    for layer, found in read_features(cache).items():
        expected = live_features[layer] @ cache.projection(layer)
        assert torch.cosine_similarity(found, expected, dim=-1).mean() >= 0.999
        kept = cache.manifest.kept[cache.layers.index(layer)]
        assert (found.square().sum() / live_features[layer].square().sum()).item() == pytest.approx(kept, rel=0.01)
    assert FeatureCache(caches["int8"]).projection(1) is None


@pytest.mark.parametrize("storage", ["bf16", "int8", "projected"])
@pytest.mark.parametrize("cropped", [False, True])
def test_targets_from_cache_equal_live_targets(caches, live_features, storage, cropped):
    cache, registration = FeatureCache(caches[storage]), Registration((3, 3), [WHOLE_IMAGE, WHOLE_IMAGE])
    warp = torch.tensor([[[0.7, 0.1, 0.1], [-0.1, 0.8, 0.15]]]).expand(ROWS, 2, 2, 3) if cropped else None
    features = cache.decode(default_collate([cache.read(index) for index in range(ROWS)]))
    matrices = {layer: cache.projection(layer) for layer in LAYERS} if storage == "projected" else None
    targets = registration(features, warp, matrices)
    features.maps = live_features
    for layer, expected in registration(features, warp).items():
        expected = expected @ matrices[layer] if matrices else expected
        assert torch.cosine_similarity(targets[layer], expected, dim=-1).mean() >= 0.999


def test_scene_images_have_size_of_largest_camera(teacher):
    images = [random_image(0, 28, 56)[None], random_image(1, 30, 30)[None]]
    scene = scene_images(images, teacher)
    assert scene.shape == (1, 2, 3, 28, 56)
    assert torch.equal(scene[:, 0], images[0] / 255)
    torch.testing.assert_close(scene_images([image / 255 for image in images], teacher), scene)
    assert scene.min() >= 0 and scene.max() <= 1


def test_chosen_cameras_and_layers_keep_requested_order(caches, live_features):
    cache = FeatureCache(caches["bf16"], cameras=["wrist", "top"], layers=[4, 1])
    found = read_features(cache)
    assert list(found) == [4, 1]  # as requested, although the cache stores the last layer as -1
    for layer, same in ((4, -1), (1, 1)):
        torch.testing.assert_close(found[layer], live_features[same].flip(1), rtol=2**-8, atol=1e-5)
    assert "from the cameras top, wrist in this order and is read for wrist, top" in cache.scene_note
    assert FeatureCache(caches["bf16"]).scene_note == ""
    one = FeatureCache(caches["projected"], cameras=["wrist"], layers=[4])
    assert one.read(0)["codes"].shape == (1, 1, 8, 16)
    assert torch.equal(one.projection(4), FeatureCache(caches["projected"]).projection(-1))


def test_smaller_grid_is_resampled_before_storage(teacher, live_features, tmp_path):
    cache = build_cache(tmp_path / "small", teacher, grid=(1, 2))
    assert cache.grid == (1, 2)
    for layer, found in read_features(cache).items():
        expected = register_features(live_features[layer], (2, 4), (1, 2), code_weight=0)
        torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-4)


def test_workers_read_same_rows_in_any_order(caches):
    cache = FeatureCache(caches["int8"])
    expected = [cache.read(index) for index in range(ROWS)]  # opens the shards in this process too
    order = torch.randperm(ROWS).tolist()
    loaders = [
        DataLoader(
            range(ROWS), batch_size=None, sampler=order, collate_fn=cache.read, num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        for workers in (2, 1, 0)
    ]  # fmt: skip
    for rows in zip(order, *map(iter, loaders), strict=True):  # all loaders' workers run at the same time
        for row in rows[1:]:
            assert all(torch.equal(row[name], tensor) for name, tensor in expected[rows[0]].items())


def test_pickled_cache_maps_its_files_again(caches):
    cache = FeatureCache(caches["bf16"])
    row = cache.read(5)["features"]
    sent = pickle.dumps(cache)
    assert len(sent) < 10_000
    assert torch.equal(pickle.loads(sent).read(5)["features"], row)


# Errors


@pytest.fixture
def copy(caches, tmp_path) -> Path:
    return shutil.copytree(caches["int8"], tmp_path / "copy")


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_flipped_bit_raises_with_name_of_shard(copy):
    path = shard_path(copy, 1)
    flip_bit(path, path.stat().st_size - 4 * 3 * 2 * 8 * 32 + 100)  # in the codes of the first row
    cache = FeatureCache(copy)
    for _ in range(2):  # a row that failed its check must not count as checked
        with pytest.raises(UserError, match=r"00001.safetensors is corrupt .* frame 4 .*`rocket-hf cache verify`"):
            cache.read(4)
    for index in set(range(ROWS)) - {4}:
        cache.read(index)
    with pytest.raises(UserError, match=r"00001.safetensors is corrupt .*digest"):
        verify_shard(copy, cache.manifest, 1)


def test_verify_detects_flipped_bit_anywhere_in_shard(copy):
    manifest, path = Manifest.load(copy), shard_path(copy, 5)
    whole = path.read_bytes()
    for offset in range(0, len(whole), 61):
        flip_bit(path, offset)
        with pytest.raises(UserError, match=r"00005.safetensors"):
            verify_shard(copy, manifest, 5)
        path.write_bytes(whole)
    verify_shard(copy, manifest, 5)


def test_truncated_shard_raises_and_can_be_rebuilt(copy, caches, teacher):
    path = shard_path(copy, 2)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"00002.safetensors is corrupt"):
        FeatureCache(copy).read(9)
    with pytest.raises(UserError, match=r"00002.safetensors is corrupt"):
        build_cache(copy, teacher, storage="int8")
    path.unlink()
    with pytest.raises(UserError, match="1 of 6 shards are missing"):
        FeatureCache(copy)
    build_cache(copy, teacher, storage="int8")  # the fix that the message proposes
    assert read_files(copy) == read_files(caches["int8"])


@pytest.mark.parametrize("source", ["another cache", "another position"])
def test_shard_of_other_cache_or_position_raises(copy, teacher, tmp_path, source):
    if source == "another cache":
        build_cache(tmp_path / "other", teacher, RandomFrames(revision="v2"), storage="int8")
        shutil.copy(shard_path(tmp_path / "other", 1), shard_path(copy, 1))
    else:
        shutil.copy(shard_path(copy, 0), shard_path(copy, 1))
    with pytest.raises(UserError, match=r"00001.safetensors is a shard of another cache or of another position"):
        FeatureCache(copy).read(4)
    with pytest.raises(UserError, match=r"00001.safetensors is a shard of another cache"):
        build_cache(copy, teacher, storage="int8")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (("you/robot", "v2", "f" * 64), "of you/robot@v1, not of you/robot@v2: build another"),
        (("you/other", "v1", "f" * 64), "not of you/other@v1"),
        (("you/robot", "v1", "e" * 64), "not of you/robot@v1 in its current state"),
        (("robot", "local", "e" * 64), "not of robot@local"),
    ],
)
def test_cache_of_other_dataset_raises(caches, dataset, message):
    with pytest.raises(UserError, match=message):
        FeatureCache(caches["bf16"]).check_dataset(*dataset)


@pytest.mark.parametrize("dataset", [("you/robot", "v1", "f" * 64), ("copy-of-robot", "local", "f" * 64)])
def test_cache_accepts_its_dataset_and_copies_of_it(caches, dataset):
    FeatureCache(caches["bf16"]).check_dataset(*dataset)


def test_missing_layer_camera_or_manifest_raises_with_its_name(caches, tmp_path):
    with pytest.raises(UserError, match=r"has no teacher layer 2: it has \[1, 3, -1\] of tiny"):
        FeatureCache(caches["bf16"], layers=[1, 2])
    with pytest.raises(UserError, match=r"has no camera 'tob': did you mean 'top'"):
        FeatureCache(caches["bf16"], cameras=["tob"])
    with pytest.raises(UserError, match=r"is not a feature cache: it has no manifest.json"):
        FeatureCache(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 99}')
    with pytest.raises(UserError, match="version 99"):
        FeatureCache(tmp_path)


def test_edited_manifest_does_not_match_its_shards(copy):
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"revision": "v1"', '"revision": "v2"'))
    with pytest.raises(UserError, match="is a shard of another cache"):
        FeatureCache(copy).read(0)


def test_cache_of_version_0_1_0_is_read(copy):
    """Version 0.1.0 spelled the key of the license in British English, in the manifest and in the hash."""
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"license"', '"licence"'))
    cache = FeatureCache(copy)
    assert cache.manifest.license == "apache-2.0"
    assert cache.read(0)["codes"].shape == (3, 2, 8, 32)
    verify_shard(copy, cache.manifest, 0)


def test_fingerprint_equals_that_of_version_0_1_0():
    manifest = Manifest(
        dataset="you/robot", revision="v1", dataset_fingerprint="f" * 64, rows=22, cameras=("top", "wrist"),
        teacher="tiny", weights="0" * 64, license="apache-2.0", dtype="float32", depth=4, layers=(1, 3, -1),
        input_size=(28, 56), grid=(2, 4), channels=32, storage="projected", width=16, rows_per_shard=4,
        projection="ab" * 32, kept=(0.9, 0.95, 0.981234),
    )  # fmt: skip
    assert manifest.fingerprint == "9d25eeb41e7aacf76ccbfd8dcd37dc386388ed9f32f110106964b308aeae63ce"


def test_missing_projection_raises_with_its_name(caches, tmp_path):
    copy = shutil.copytree(caches["projected"], tmp_path / "copy")
    os.remove(copy / "projection.safetensors")
    with pytest.raises(UserError, match=r"projection.safetensors is missing"):
        FeatureCache(copy)
