"""Inputs of runs: a name such as `models/base` means what it meant when the run was started."""

import json
from pathlib import Path

import pytest

from rocket_hf.errors import UserError
from rocket_hf.hub import HubSource, require_tag
from rocket_hf.publishing.provenance import RunInputs
from rocket_hf.training.input_origins import ORIGINS


def test_recorded_folders_and_repositories_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / ORIGINS).write_text(json.dumps({"models/base": "/gone/models/base", "ada/base@v1": None}))
    for name in ("models/base", "ada/base@v1"):
        (tmp_path / name).mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "models"):
        monkeypatch.chdir(folder)
        inputs = RunInputs(tmp_path)
        assert inputs.folder("models/base") == Path("/gone/models/base") and inputs.hub_source("models/base") is None
        assert inputs.folder("ada/base@v1") is None and inputs.hub_source("ada/base@v1") == HubSource("ada/base", "v1")


def test_name_without_record_is_on_the_hub_only_if_it_is_cached(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = RunInputs(tmp_path)
    assert inputs.hub_source("models/base") is None and inputs.folder("models/base") is None
    Path("models/base").mkdir(parents=True)
    assert inputs.folder("models/base") == Path("models/base")


@pytest.mark.parametrize("content", ["[", "[]", '{"a": 1}'])
def test_damaged_record_is_user_error(content, tmp_path):
    (tmp_path / ORIGINS).write_text(content)
    with pytest.raises(UserError, match="restore the file"):
        RunInputs(tmp_path)


def test_names_of_tags_follow_the_rules_of_git():
    for name in ("v1", "v1.0-rc.1", "release/2", "2026_01"):
        require_tag(name)
    invalid = ["", "v 1", "-v", ".v", "v.", "a..b", "a//b", "a/", "x.lock", "a/.b", "a~1", "a^", "a:b", "a?", "a*"]
    for name in (*invalid, "a[b", "a@{b", "a\\b", "a\n"):
        with pytest.raises(UserError, match="invalid tag"):
            require_tag(name)
