"""Tests that names of policies, teachers and datasets are resolved to local folders and commits."""

import pytest

from rocket_hf.errors import UserError
from rocket_hf.hub import HubSource, parse_source, resolve

from .clients import run
from .store import File


def test_source_is_parsed_into_id_and_revision():
    assert parse_source("ada/arm") == HubSource("ada/arm")
    assert parse_source("ada/arm@refs/pr/1") == HubSource("ada/arm", "refs/pr/1")
    assert parse_source("ada/arm@v1", revision="v1") == parse_source("ada/arm", revision="v1")
    assert str(HubSource("ada/arm", "v1")) == "ada/arm@v1"


@pytest.mark.parametrize("text", ["arm", "ada/arm/more", "../arm", "/arm", "ada/", "@v1", ""])
def test_invalid_sources_are_rejected(text):
    with pytest.raises(UserError, match=r"invalid base model .*: expected OWNER/NAME or OWNER/NAME@REVISION"):
        parse_source(text, "base model")
    with pytest.raises(UserError, match=r"the teacher .* is neither a local folder nor a Hub repository"):
        resolve(text, ["*"], kind="teacher")


def test_two_different_revisions_are_rejected():
    with pytest.raises(UserError, match="with a second revision 'v2': remove one of the two"):
        parse_source("ada/arm@v1", revision="v2")


def test_local_folder_has_no_commit_and_no_revision(tmp_path):
    resolved = resolve(str(tmp_path), ["*"])
    assert (resolved.folder, resolved.commit) == (tmp_path, None)
    with pytest.raises(UserError, match="is a folder, which has no revision 'v1': remove the revision"):
        resolve(tmp_path, ["*"], revision="v1")


RESOLVE = """
import sys
from rocket_hf.hub import cached_commit, cached_file, resolve

assert cached_commit("ada/arm", "config.json") is None
arm = resolve("ada/arm@v1", ["*.json"])
assert sorted(path.name for path in arm.folder.iterdir()) == ["config.json"]
assert cached_commit("ada/arm@v1", "config.json") == arm.commit and cached_file("ada/arm", "config.json") is None
data = [resolve(name, ["meta/*"], repo_type="dataset", kind="dataset") for name in ("ada/tagged", "ada/new")]
assert all((each.folder / "meta" / "info.json").is_file() for each in data)
assert "lerobot" in str(data[0].folder)  # the cache that lerobot uses
assert [cached_commit(name, "meta/info.json", "dataset") for name in ("ada/tagged", "ada/new")] == [
    each.commit for each in data
]
print(arm.commit, *(each.commit for each in data))
for source, repo_type in (("ada/none", "model"), ("ada/new@v9", "dataset")):
    try:
        resolve(source, ["*"], repo_type=repo_type, kind="source")
    except ValueError as error:
        print(error)
"""


@pytest.mark.needs_lerobot
def test_sources_on_the_hub_are_downloaded_and_found_in_the_cache(hub, tmp_path):
    """Datasets are read at the tag of lerobot's format if they have it, else at main."""
    commits = []
    for kind, name, tag, file in (
        ("models", "ada/arm", "v1", "config.json"),
        ("datasets", "ada/tagged", "v3.0", "meta/info.json"),
        ("datasets", "ada/new", None, "meta/info.json"),
    ):
        repository = hub.store.create(kind, name)
        commit = repository.commit("files", {file: File(b"{}", False), "notes.txt": File(b"x", False)})
        commits.append(commit.oid)
        if tag is not None:
            repository.tags[tag] = commit.oid
            repository.commit("later", {"other.txt": File(b"x", False)})
    code, printed, errors = run(hub.url, RESOLVE, home=tmp_path)
    assert code == 0, errors
    first, missing, unknown = printed.splitlines()
    assert first.split() == commits
    assert missing.startswith("the source 'ada/none' is not a local folder and cannot be downloaded from the Hub: ")
    assert "the repository ada/none does not exist" in missing
    assert "ada/new has no such revision" in unknown
