"""The feature cache: what is read is what the teacher would have said, or an error that names the file."""

import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from rocket_hf.teachers.cache_manifest import Manifest
from rocket_hf.teachers.cache_shards import shard_path, verify_shard
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.registration import WHOLE, Registration, register_features
from rocket_hf.teachers.scene import scene_pictures

from .conftest import LAYERS, ROWS, DrawnFrames, build, drawn, files_of


def read(cache: FeatureCache, indices: Sequence[int] = range(ROWS)) -> dict[int, Tensor]:
    return cache.decode(default_collate([cache.read(index) for index in indices])).maps


# What is read


def test_bf16_is_the_live_feature_rounded(caches, live):
    cache = FeatureCache(caches["bf16"])
    order = torch.randperm(ROWS).tolist()
    for layer, found in read(cache, order).items():
        torch.testing.assert_close(found, live[layer][order], rtol=2**-8, atol=1e-5)
    assert (cache.grid, cache.width, len(cache)) == ((2, 4), 32, ROWS)


def test_int8_points_where_the_live_feature_points(caches, live):
    for layer, found in read(FeatureCache(caches["int8"])).items():
        assert torch.cosine_similarity(found, live[layer], dim=-1).mean() >= 0.999


def test_projected_features_are_the_live_ones_projected_and_keep_the_printed_share(caches, live):
    cache = FeatureCache(caches["projected"])
    assert cache.width == 16
    for layer, found in read(cache).items():
        expected = live[layer] @ cache.projection(layer)
        assert torch.cosine_similarity(found, expected, dim=-1).mean() >= 0.999
        kept = cache.manifest.kept[cache.layers.index(layer)]
        assert (found.square().sum() / live[layer].square().sum()).item() == pytest.approx(kept, rel=0.01)
    assert FeatureCache(caches["int8"]).projection(1) is None


@pytest.mark.parametrize("storage", ["bf16", "int8", "projected"])
@pytest.mark.parametrize("cropped", [False, True])
def test_targets_from_the_cache_equal_live_ones(caches, live, storage, cropped):
    cache, registration = FeatureCache(caches[storage]), Registration((3, 3), [WHOLE, WHOLE])
    warp = torch.tensor([[[0.7, 0.1, 0.1], [-0.1, 0.8, 0.15]]]).expand(ROWS, 2, 2, 3) if cropped else None
    features = cache.decode(default_collate([cache.read(index) for index in range(ROWS)]))
    matrices = {layer: cache.projection(layer) for layer in LAYERS} if storage == "projected" else None
    targets = registration(features, warp, matrices)
    features.maps = live
    for layer, expected in registration(features, warp).items():
        expected = expected @ matrices[layer] if matrices else expected
        assert torch.cosine_similarity(targets[layer], expected, dim=-1).mean() >= 0.999


def test_all_cameras_are_frames_of_one_scene_at_the_size_of_the_largest(teacher):
    pictures = [drawn(0, 28, 56)[None], drawn(1, 30, 30)[None]]
    scene = scene_pictures(pictures, teacher)
    assert scene.shape == (1, 2, 3, 28, 56)
    assert torch.equal(scene[:, 0], pictures[0] / 255)
    torch.testing.assert_close(scene_pictures([image / 255 for image in pictures], teacher), scene)
    assert scene.min() >= 0 and scene.max() <= 1


def test_chosen_cameras_and_layers_come_in_the_order_chosen(caches, live):
    cache = FeatureCache(caches["bf16"], cameras=["wrist", "top"], layers=[4, 1])
    found = read(cache)
    assert list(found) == [4, 1]  # as asked for, though the cache calls the last one -1
    for layer, same in ((4, -1), (1, 1)):
        torch.testing.assert_close(found[layer], live[same].flip(1), rtol=2**-8, atol=1e-5)
    assert "of the cameras top, wrist in this order and serves wrist, top" in cache.scene_note
    assert FeatureCache(caches["bf16"]).scene_note == ""
    one = FeatureCache(caches["projected"], cameras=["wrist"], layers=[4])
    assert one.read(0)["codes"].shape == (1, 1, 8, 16)
    assert torch.equal(one.projection(4), FeatureCache(caches["projected"]).projection(-1))


def test_a_smaller_grid_is_resampled_before_it_is_stored(teacher, live, tmp_path):
    cache = build(tmp_path / "small", teacher, grid=(1, 2))
    assert cache.grid == (1, 2)
    for layer, found in read(cache).items():
        expected = register_features(live[layer], (2, 4), (1, 2), code_weight=0)
        torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-4)


def test_workers_read_the_same_rows_in_any_order(caches):
    cache = FeatureCache(caches["int8"])
    expected = [cache.read(index) for index in range(ROWS)]  # and its files are open in this process
    order = torch.randperm(ROWS).tolist()
    loaders = [
        DataLoader(
            range(ROWS), batch_size=None, sampler=order, collate_fn=cache.read, num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        for workers in (2, 1, 0)
    ]  # fmt: skip
    for rows in zip(order, *map(iter, loaders), strict=True):  # the workers of all start together
        for row in rows[1:]:
            assert all(torch.equal(row[name], tensor) for name, tensor in expected[rows[0]].items())


def test_a_pickled_cache_opens_its_files_anew(caches):
    cache = FeatureCache(caches["bf16"])
    row = cache.read(5)["features"]
    sent = pickle.dumps(cache)
    assert len(sent) < 10_000
    assert torch.equal(pickle.loads(sent).read(5)["features"], row)


# Refused when it is read


@pytest.fixture
def copy(caches, tmp_path) -> Path:
    return shutil.copytree(caches["int8"], tmp_path / "copy")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_an_error_that_names_the_shard(copy):
    path = shard_path(copy, 1)
    flip(path, path.stat().st_size - 4 * 3 * 2 * 8 * 32 + 100)  # in the codes of the first row
    cache = FeatureCache(copy)
    for _ in range(2):  # again, for it was not taken for checked
        with pytest.raises(ValueError, match=r"00001.safetensors is corrupt .* frame 4 .*`rocket-hf cache verify`"):
            cache.read(4)
    for index in set(range(ROWS)) - {4}:
        cache.read(index)
    with pytest.raises(ValueError, match=r"00001.safetensors is corrupt .*digest"):
        verify_shard(copy, cache.manifest, 1)


def test_every_byte_of_a_shard_is_verified(copy):
    manifest, path = Manifest.load(copy), shard_path(copy, 5)
    whole = path.read_bytes()
    for place in range(0, len(whole), 61):
        flip(path, place)
        with pytest.raises(ValueError, match=r"00005.safetensors"):
            verify_shard(copy, manifest, 5)
        path.write_bytes(whole)
    verify_shard(copy, manifest, 5)


def test_a_torn_shard_is_an_error_that_names_it_and_can_be_made_again(copy, caches, teacher):
    path = shard_path(copy, 2)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"00002.safetensors is corrupt"):
        FeatureCache(copy).read(9)
    with pytest.raises(ValueError, match=r"00002.safetensors is corrupt"):
        build(copy, teacher, storage="int8")
    path.unlink()
    with pytest.raises(ValueError, match="1 of 6 shards are missing"):
        FeatureCache(copy)
    build(copy, teacher, storage="int8")  # as the sentence says
    assert files_of(copy) == files_of(caches["int8"])


@pytest.mark.parametrize("source", ["another cache", "another place"])
def test_a_foreign_shard_is_refused(copy, teacher, tmp_path, source):
    if source == "another cache":
        build(tmp_path / "other", teacher, DrawnFrames(revision="v2"), storage="int8")
        shutil.copy(shard_path(tmp_path / "other", 1), shard_path(copy, 1))
    else:
        shutil.copy(shard_path(copy, 0), shard_path(copy, 1))
    with pytest.raises(ValueError, match=r"00001.safetensors is a shard of another cache or in another's place"):
        FeatureCache(copy).read(4)
    with pytest.raises(ValueError, match=r"00001.safetensors is a shard of another cache"):
        build(copy, teacher, storage="int8")


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        (("you/robot", "v2", "f" * 64), "of you/robot@v1, not of you/robot@v2: build another"),
        (("you/other", "v1", "f" * 64), "not of you/other@v1"),
        (("you/robot", "v1", "e" * 64), "not of you/robot@v1 as it is now"),
        (("robot", "local", "e" * 64), "not of robot@local"),
    ],
)
def test_a_cache_of_another_dataset_is_refused(caches, dataset, sentence):
    with pytest.raises(ValueError, match=sentence):
        FeatureCache(caches["bf16"]).check(*dataset)


@pytest.mark.parametrize("dataset", [("you/robot", "v1", "f" * 64), ("copy-of-robot", "local", "f" * 64)])
def test_a_cache_serves_its_dataset_and_copies_of_it(caches, dataset):
    FeatureCache(caches["bf16"]).check(*dataset)


def test_what_a_cache_lacks_is_named(caches, tmp_path):
    with pytest.raises(ValueError, match=r"has no teacher layer 2: it has \[1, 3, -1\] of tiny"):
        FeatureCache(caches["bf16"], layers=[1, 2])
    with pytest.raises(ValueError, match=r"has no camera 'tob': did you mean 'top'"):
        FeatureCache(caches["bf16"], cameras=["tob"])
    with pytest.raises(ValueError, match=r"is no feature cache: it has no manifest.json"):
        FeatureCache(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version 99"):
        FeatureCache(tmp_path)


def test_an_edited_manifest_disowns_its_shards(copy):
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"revision": "v1"', '"revision": "v2"'))
    with pytest.raises(ValueError, match="is a shard of another cache"):
        FeatureCache(copy).read(0)


def test_a_missing_projection_is_named(caches, tmp_path):
    copy = shutil.copytree(caches["projected"], tmp_path / "copy")
    os.remove(copy / "projection.safetensors")
    with pytest.raises(ValueError, match=r"projection.safetensors is missing"):
        FeatureCache(copy)
