"""Tests that a push makes one complete commit or none, with real clients and failures at every request."""

import os
import signal
import threading
from pathlib import Path

import pytest

from .clients import run, start
from .server import LoopbackHub
from .store import File

CARD = "---\nlicense: mit\n---\n# A policy\n"

# Push folders one after the other, given as FOLDER REPO TAG (or TAG:private); print the outcome of each push.
PUSH = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
from rocket_hf.publishing.upload import push_folder

given = sys.argv[1:]
for folder, repo, tag in zip(given[::3], given[1::3], given[2::3]):
    tag, _, visibility = tag.partition(":")
    try:
        published = push_folder(Path(folder), repo, visibility == "private", tag.replace("-", "") or None)
        print("changed" if published.changed else "unchanged", published.commit)
    except ValueError as error:
        print(error)
"""


def write(folder: Path, shards: int, word: str) -> Path:
    """Write files with the names of a policy's files; a push does not read their content."""
    folder.mkdir()
    (folder / "README.md").write_text(CARD + word)
    (folder / "config.json").write_text(f'{{"word": "{word}"}}')
    (folder / "modeling_rocket.py").write_text("import torch\n")
    for number in range(1, shards + 1):
        (folder / f"model-{number:05}-of-{shards:05}.safetensors").write_bytes(f"{word}{number}".encode() * 3000)
    return folder


@pytest.fixture
def first(tmp_path) -> Path:
    return write(tmp_path / "first", 3, "first")


@pytest.fixture
def second(tmp_path) -> Path:
    return write(tmp_path / "second", 2, "second")


def push(hub: LoopbackHub, home: Path, *what: object, **settings) -> list[str]:
    """Run a client that pushes; return one line of output per push."""
    code, output, errors = run(hub.url, PUSH, *what, home=home, **settings)
    assert code == 0, errors
    return output.splitlines()


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def has_files_of(commit, folder: Path) -> bool:
    files = {path: file.data for path, file in commit.files.items() if path != ".gitattributes"}
    return files == {name: (folder / name).read_bytes() for name in names(folder)}


def test_push_makes_one_commit_and_tag_and_none_if_unchanged(first, second, tmp_path):
    with LoopbackHub(part_size=8000) as hub:
        code, output, errors = run(
            hub.url, PUSH, *(first, "ada/arm", "v1") * 2, first, "ada/arm", "-", second, "ada/arm", "v2",
            home=tmp_path / "home",
        )  # fmt: skip
        assert code == 0, errors
        arm = hub.model("ada/arm")
        one, two = arm.tags["v1"], arm.tags["v2"]
        assert output.splitlines() == [f"changed {one}", f"unchanged {one}", f"unchanged {one}", f"changed {two}"]
        history = [commit.title for commit in arm.history(arm.head.oid)]
        assert history == ["Publish v2", "Publish v1", "initial commit"]
        assert has_files_of(arm.commits[one], first) and has_files_of(arm.commits[two], second)  # no stale shard
        assert len(hub.called("PUT .*/[12]$")) > 4  # uploaded in parts
        assert "model-00001-of-00003.safetensors" in errors and "100%" in errors  # the progress bar of the upload


def test_stale_files_are_deleted_and_files_of_the_user_are_kept(hub, first, tmp_path):
    """Figures and evaluation results are in subfolders."""
    arm = hub.store.create("models", "ada/arm")
    (first / "figures").mkdir()
    (first / "figures" / "loss_curves.png").write_bytes(b"png")
    of_user = ("LICENSE", "video.mp4", "figures/notes.txt", "onnx/model.json", ".eval_results/by_someone_else.yaml")
    stale = (
        "pytorch_model.bin", "policy_gone.py", "optimizer.pt", "figures/rollouts.png", ".eval_results/rocket_hf.yaml",
    )  # fmt: skip
    arm.commit("before", {**arm.head.files, **{name: File(b"x", False) for name in (*of_user, *stale)}})
    (outcome,) = push(hub, tmp_path / "home", first, "ada/arm", "-")
    assert outcome == f"changed {arm.head.oid}"
    assert arm.head.files.keys() == {*names(first), *of_user, ".gitattributes"}
    assert arm.head.files["figures/loss_curves.png"].data == b"png"
    assert push(hub, tmp_path / "home", first, "ada/arm", "-") == [f"unchanged {arm.head.oid}"]


def test_failed_push_leaves_repository_unchanged_and_retry_completes_it(hub, tmp_path):
    first = write(tmp_path / "first", 1, "first")
    arm = hub.store.create("models", "ada/arm")
    before = arm.head.oid
    hub.fault("PUT /storage", times=6, cut="before")  # more often than huggingface_hub retries
    hub.fault("POST .*/commit/", status=503)
    hub.fault("POST .*/tag/", status=500)
    outcomes = push(hub, tmp_path / "home", *(first, "ada/arm", "v1") * 4)
    assert "cannot be reached" in outcomes[0] and "check the network" in outcomes[0]
    assert (
        outcomes[1]
        == "the Hub failed for ada/arm (HTTP status 503): run the command again, completed transfers are kept"
    )
    assert "HTTP status 500" in outcomes[2]
    assert outcomes[3] == f"unchanged {arm.head.oid}"
    assert arm.tags == {"v1": arm.head.oid} and has_files_of(arm.head, first)
    assert [commit.oid for commit in arm.history(arm.head.oid)][1:] == [before]


def test_commit_with_lost_response_is_not_made_twice(hub, first, tmp_path):
    hub.fault("POST .*/commit/", cut="after")
    (outcome,) = push(hub, tmp_path / "home", first, "ada/arm", "v1")
    arm = hub.model("ada/arm")
    assert outcome == f"changed {arm.head.oid}"
    assert arm.tags == {"v1": arm.head.oid}
    assert len(arm.commits) == len(hub.called("POST .*/commit/")) + 1 == 2


def test_one_of_two_concurrent_pushes_wins_completely(hub, first, second, tmp_path):
    arm = hub.store.create("models", "ada/arm")
    hub.fault("POST .*/commit/", times=2, barrier=threading.Barrier(2))
    racers = [
        start(hub.url, PUSH, folder, "ada/arm", folder.name, home=tmp_path / folder.name / "..")
        for folder in (first, second)
    ]
    outcomes = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    (lost,) = [outcome for outcome in outcomes if not outcome.startswith("changed")]
    assert lost.startswith("someone else committed to ada/arm in the meantime")
    winner, loser = (first, second) if outcomes[1] == lost else (second, first)
    assert has_files_of(arm.head, winner) and len(arm.commits) == 2
    assert arm.tags == {winner.name: arm.head.oid}
    (again,) = push(hub, tmp_path / "home", loser, "ada/arm", loser.name)
    assert again == f"changed {arm.head.oid}" and has_files_of(arm.head, loser)


def test_killed_push_leaves_repository_unchanged(hub, first, tmp_path):
    arm = hub.store.create("models", "ada/arm")
    before = arm.head.oid
    sent = hub.fault("PUT /storage", times=1)
    stuck = hub.fault("PUT /storage", times=1, wait=(release := threading.Event()))
    process = start(hub.url, PUSH, first, "ada/arm", "v1", home=tmp_path / "home", HF_HUB_UPLOAD_THREADS="1")
    assert sent.seen.wait(60) and stuck.seen.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    release.set()
    assert arm.head.oid == before and not arm.tags
    (outcome,) = push(hub, tmp_path / "home", first, "ada/arm", "v1")
    assert outcome == f"changed {arm.head.oid}" and has_files_of(arm.head, first)


def test_used_tag_and_wrong_visibility_are_found_before_upload(hub, first, second, tmp_path):
    arm = hub.store.create("models", "ada/arm")
    outcomes = push(
        hub, tmp_path / "home", first, "ada/arm", "v1", second, "ada/arm", "v1", second, "ada/arm", "v2:private",
        second, "ada/hidden", "v1:private",
    )  # fmt: skip
    one = arm.tags["v1"]
    assert outcomes[1] == f"the tag v1 of ada/arm is in use for other files (commit {one[:8]}): choose another tag"
    assert outcomes[2].startswith("ada/arm is public, but should be private: change the visibility in its settings")
    assert hub.model("ada/hidden").private and outcomes[3].startswith("changed")
    assert arm.head.oid == one and arm.tags == {"v1": one}


def test_missing_permissions_are_explained(hub, first, tmp_path):
    hub.store.create("models", "ada/arm")
    hub.store.create("models", "ada/hidden", private=True)
    home = tmp_path / "home"
    outcomes = push(hub, home, first, "ada/arm", "-", first, "ada/hidden", "-", first, "arm", "-", token="token-of-bob")
    assert outcomes[0] == "your token may not write to ada/arm: use a token with write access to ada"
    assert outcomes[1].startswith("your token may not write to ada/hidden")
    assert outcomes[2] == "invalid repository id 'arm': expected OWNER/NAME"
    for token in ("wrong", None):
        (outcome,) = push(hub, home, first, "ada/new", "-", token=token)
        assert outcome == "the Hub does not accept your token: log in with `hf auth login`, or set HF_TOKEN"
    assert all(len(repository.commits) == 1 for repository in hub.store.repositories.values())


def test_card_rejected_by_the_hub_makes_no_commit(hub, first, tmp_path):
    (first / "README.md").write_text("---\nlicense: [\n---\n")
    (outcome,) = push(hub, tmp_path / "home", first, "ada/arm", "-")
    assert outcome.startswith("Invalid metadata in README.md.")
    assert len(hub.model("ada/arm").commits) == 1


def test_missing_network_is_explained_in_one_sentence(first, tmp_path):
    with LoopbackHub() as hub:
        pass
    (outcome,) = push(hub, tmp_path / "home", first, "ada/arm", "-")
    assert outcome.startswith(f"the Hub at {hub.url} cannot be reached (ConnectError): check the network")
    (outcome,) = push(hub, tmp_path / "home", first, "ada/arm", "-", HF_HUB_OFFLINE="1")
    assert outcome == "HF_HUB_OFFLINE is set, so the Hub cannot be reached: unset it"


FETCH = """
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from rocket_hf.hub import hub_errors_as_user_errors

for call in (lambda: snapshot_download("ada/gated"), lambda: snapshot_download("ada/none"),
             lambda: snapshot_download("ada/arm", revision="v9"), lambda: hf_hub_download("ada/arm", "none")):
    try:
        with hub_errors_as_user_errors("ada/arm"):
            call()
    except ValueError as error:
        print(error)
"""


def test_failed_downloads_are_explained(hub, tmp_path):
    hub.store.create("models", "ada/gated").gated = True
    hub.store.create("models", "ada/arm")
    _, output, errors = run(hub.url, FETCH, home=tmp_path, token="token-of-bob")
    starts = (
        "ada/arm is gated",
        "the repository ada/arm does not exist",
        "ada/arm has no such revision",
        "ada/arm lacks a required file",
    )
    lines = output.splitlines()
    assert len(lines) == 4, errors
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines
