"""Generated datasets, written once: pictures stored in tables, and as video."""

import logging
import shutil

import pytest

from rocket_hf.tiny import tiny_config
from rocket_hf.tiny_dataset import write_tiny_dataset


@pytest.fixture(scope="session", autouse=True)
def no_page_of_libraries_that_torchcodec_lacks():
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """Four episodes of 12, 15, 12 and 15 frames, cameras front (48 x 64) and wrist (32 x 32)."""
    return write_tiny_dataset(tmp_path_factory.mktemp("datasets") / "stored")


@pytest.fixture(scope="session")
def filmed(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("datasets") / "filmed", video=True)


@pytest.fixture
def copied(stored, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(stored, tmp_path / "copied")


@pytest.fixture(scope="session")
def config():
    return tiny_config()
