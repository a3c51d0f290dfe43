"""One commit or none: pushes of a folder by real clients, and everything that may come between."""

import os
import signal
import threading
from pathlib import Path

import pytest

from .clients import run, start
from .server import LoopbackHub
from .store import File

CARD = "---\nlicense: mit\n---\n# A policy\n"

# Pushes one after the other, FOLDER REPO TAG for each (or TAG:private), and says what came of it.
PUSH = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
from rocket_hf.publishing.upload import push

given = sys.argv[1:]
for folder, repo, tag in zip(given[::3], given[1::3], given[2::3]):
    tag, _, visibility = tag.partition(":")
    try:
        done = push(Path(folder), repo, visibility == "private", tag.replace("-", "") or None)
        print("changed" if done.changed else "unchanged", done.commit)
    except ValueError as error:
        print(error)
"""


def write(folder: Path, shards: int, word: str) -> Path:
    """Files of the kinds that a policy has; a push does not look into them."""
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
    """The lines of a client that pushes; each is one outcome."""
    code, output, errors = run(hub.url, PUSH, *what, home=home, **settings)
    assert code == 0, errors
    return output.splitlines()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def holds(commit, folder: Path) -> bool:
    files = {path: file.data for path, file in commit.files.items() if path != ".gitattributes"}
    return files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_push_is_one_commit_and_a_tag_and_an_unchanged_one_none(first, second, tmp_path):
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
        assert holds(arm.commits[one], first) and holds(arm.commits[two], second)  # no stale shard
        assert len(hub.called("PUT .*/[12]$")) > 4  # in parts
        assert "model-00001-of-00003.safetensors" in errors and "100%" in errors  # the bar of the upload


def test_what_is_not_ours_stays(hub, first, tmp_path):
    arm = hub.store.create("models", "ada/arm")
    mine = {name: File(b"x", False) for name in ("LICENSE", "video.mp4")}
    stale = {name: File(b"x", False) for name in ("pytorch_model.bin", "policy_gone.py", "optimizer.pt")}
    arm.commit("before", {**arm.head.files, **mine, **stale})
    push(hub, tmp_path / "home", first, "ada/arm", "-")
    assert arm.head.files.keys() == {*names(first), *mine, ".gitattributes"}


def test_failures_leave_the_repository_as_it_was_and_running_again_finishes(hub, tmp_path):
    first = write(tmp_path / "first", 1, "first")
    arm = hub.store.create("models", "ada/arm")
    before = arm.head.oid
    hub.fault("PUT /storage", times=6, cut="before")  # also the retries of huggingface_hub
    hub.fault("POST .*/commit/", status=503)
    hub.fault("POST .*/tag/", status=500)
    outcomes = push(hub, tmp_path / "home", *(first, "ada/arm", "v1") * 4)
    assert "cannot be reached" in outcomes[0] and "check the network" in outcomes[0]
    assert outcomes[1] == "the Hub fails for ada/arm (status 503): run the command again, it goes on from there"
    assert "status 500" in outcomes[2]
    assert outcomes[3] == f"unchanged {arm.head.oid}"
    assert arm.tags == {"v1": arm.head.oid} and holds(arm.head, first)
    assert [commit.oid for commit in arm.history(arm.head.oid)][1:] == [before]


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, first, tmp_path):
    hub.fault("POST .*/commit/", cut="after")
    (outcome,) = push(hub, tmp_path / "home", first, "ada/arm", "v1")
    arm = hub.model("ada/arm")
    assert outcome == f"changed {arm.head.oid}"
    assert arm.tags == {"v1": arm.head.oid}
    assert len(arm.commits) == len(hub.called("POST .*/commit/")) + 1 == 2


def test_of_two_publishers_one_wins_whole(hub, first, second, tmp_path):
    arm = hub.store.create("models", "ada/arm")
    hub.fault("POST .*/commit/", times=2, barrier=threading.Barrier(2))
    racers = [
        start(hub.url, PUSH, folder, "ada/arm", folder.name, home=tmp_path / folder.name / "..")
        for folder in (first, second)
    ]
    outcomes = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    (lost,) = [outcome for outcome in outcomes if not outcome.startswith("changed")]
    assert lost.startswith("someone else has committed to ada/arm in the meantime")
    winner, loser = (first, second) if outcomes[1] == lost else (second, first)
    assert holds(arm.head, winner) and len(arm.commits) == 2
    assert arm.tags == {winner.name: arm.head.oid}
    (again,) = push(hub, tmp_path / "home", loser, "ada/arm", loser.name)
    assert again == f"changed {arm.head.oid}" and holds(arm.head, loser)


def test_a_publisher_that_is_killed_leaves_nothing_half_done(hub, first, tmp_path):
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
    assert outcome == f"changed {arm.head.oid}" and holds(arm.head, first)


def test_a_taken_tag_and_the_wrong_visibility_are_found_before_anything_is_sent(hub, first, second, tmp_path):
    arm = hub.store.create("models", "ada/arm")
    outcomes = push(
        hub, tmp_path / "home", first, "ada/arm", "v1", second, "ada/arm", "v1", second, "ada/arm", "v2:private",
        second, "ada/hidden", "v1:private",
    )  # fmt: skip
    one = arm.tags["v1"]
    assert outcomes[1] == f"ada/arm has a tag v1 of something else (commit {one[:8]}): choose another tag"
    assert outcomes[2].startswith("ada/arm is public and was to be private: change that in its settings")
    assert hub.model("ada/hidden").private and outcomes[3].startswith("changed")
    assert arm.head.oid == one and arm.tags == {"v1": one}


def test_those_who_may_not_are_told_so(hub, first, tmp_path):
    hub.store.create("models", "ada/arm")
    hub.store.create("models", "ada/hidden", private=True)
    home = tmp_path / "home"
    may_not = push(hub, home, first, "ada/arm", "-", first, "ada/hidden", "-", first, "arm", "-", token="token-of-bob")
    assert may_not[0] == "this token may not write to ada/arm: use one that may write for ada"
    assert may_not[1].startswith("this token may not write to ada/hidden")
    assert may_not[2] == "a repository is called owner/name, got 'arm'"
    for token in ("wrong", None):
        (outcome,) = push(hub, home, first, "ada/new", "-", token=token)
        assert outcome == "the Hub does not accept this token: log in with `hf auth login`, or set HF_TOKEN"
    assert all(len(repository.commits) == 1 for repository in hub.store.repositories.values())


def test_a_card_that_the_hub_refuses_makes_no_commit(hub, first, tmp_path):
    (first / "README.md").write_text("---\nlicense: [\n---\n")
    (outcome,) = push(hub, tmp_path / "home", first, "ada/arm", "-")
    assert outcome.startswith("Invalid metadata in README.md.")
    assert len(hub.model("ada/arm").commits) == 1


def test_without_a_network_there_is_one_sentence(first, tmp_path):
    with LoopbackHub() as hub:
        pass
    (outcome,) = push(hub, tmp_path / "home", first, "ada/arm", "-")
    assert outcome.startswith(f"the Hub at {hub.url} cannot be reached (ConnectError): check the network")
    (outcome,) = push(hub, tmp_path / "home", first, "ada/arm", "-", HF_HUB_OFFLINE="1")
    assert outcome == "HF_HUB_OFFLINE is set, so the Hub is not asked: unset it"


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


def test_what_cannot_be_fetched_is_told(hub, tmp_path):
    hub.store.create("models", "ada/gated").gated = True
    hub.store.create("models", "ada/arm")
    _, output, errors = run(hub.url, FETCH, home=tmp_path, token="token-of-bob")
    starts = ("ada/arm is gated", "there is no repository", "ada/arm has no such revision", "ada/arm lacks a file")
    lines = output.splitlines()
    assert len(lines) == 4, errors
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines
