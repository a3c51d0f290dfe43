"""Dataset statistics cover all frames, and normalized values are of order one."""

import numpy as np
import pytest
import torch

from rocket_hf.modeling.normalization import STATISTICS, Normalizer
from rocket_hf.tiny import tiny_config
from rocket_hf.training.data.dataset_statistics import compute_dataset_statistics, compute_statistics
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.recipe import DatasetConfig

pytestmark = pytest.mark.needs_lerobot


def test_statistics_of_a_mixture_equal_numpys_over_all_selected_frames(image_dataset, video_dataset):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    config = tiny_config()
    datasets = [
        RobotDataset(DatasetConfig(id=str(image_dataset), episodes=[1, 3]), config),
        RobotDataset(DatasetConfig(id=str(video_dataset)), config),
    ]
    reference = LeRobotDataset("local/reference", root=image_dataset).hf_dataset
    rows = [index for index in range(54) if reference[index]["episode_index"] in (1, 3)] + list(range(54))
    computed = compute_dataset_statistics(datasets)
    for name, key in (("state", "observation.state"), ("action", "action")):
        table = np.stack([reference[index][key].numpy() for index in rows]).astype(np.float64)
        expected = {"mean": table.mean(0), "std": table.std(0), "min": table.min(0), "max": table.max(0)}
        expected |= {"q01": np.quantile(table, 0.01, axis=0), "q99": np.quantile(table, 0.99, axis=0)}
        assert set(computed[name]) == set(expected)
        for statistic, values in expected.items():
            np.testing.assert_allclose(computed[name][statistic], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", STATISTICS)
def test_dimensions_that_rarely_or_never_move_are_normalized_to_order_one(mode):
    table = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    table[:, 1] = 0.1  # constant
    table[:, 2] = 0.0  # like a gripper that is open in two frames only
    table[500:502, 2] = 1.0
    normalizer = Normalizer("action", 3, mode, compute_statistics(table))
    normalized = normalizer.normalize(torch.from_numpy(table))
    assert normalized.isfinite().all()
    assert normalized.abs().max() < 25
    torch.testing.assert_close(normalizer.unnormalize(normalized), torch.from_numpy(table))
