"""A checked folder to a repository on the Hub, in one commit: all of it or nothing, and again if need be.

1. the repository, made if it is not there, has the visibility asked for; the tag is free
2. one commit on the head that was seen: what differs is added, what an earlier push left is deleted
3. every file's hash on the server; 4. the tag
"""

import hashlib
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from rocket_hf import __version__
from rocket_hf.errors import HTTPError, UserError
from rocket_hf.hub import hub_errors_as_user_errors

# What a publish may have left, and what would be loaded beside it: deleted unless it is in the new folder.
OURS = ("*.py", "*.json", "*.jinja", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.model", "merges.txt", "README.md")
CHUNK = 2**22


@dataclass
class Published:
    repo: str
    commit: str
    tag: str | None
    changed: bool  # whether this push made the commit

    @property
    def revision(self) -> str:
        return self.tag or self.commit


def require_repository(repo: str) -> None:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo):
        raise UserError(f"a repository is called owner/name, got {repo!r}")


def push(folder: Path, repo: str, private: bool, tag: str | None, token: str | None = None) -> Published:
    """`folder` is flat and has been checked."""
    require_repository(repo)
    api = HfApi(token=token, library_name="rocket_hf", library_version=__version__)
    wanted = {path.name: Hashes(path) for path in sorted(folder.iterdir())}
    with hub_errors_as_user_errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        info = api.model_info(repo)
        require_visibility(repo, bool(info.private), private)
        if tag is not None and (commit := tagged_commit(api, repo, tag)):
            require_same(api, repo, tag, commit, wanted)
            return Published(repo, commit, tag, changed=False)
        head = info.sha
        assert head is not None
        commit = commit_difference(api, repo, head, wanted, tag)
        verify_hashes(api, repo, commit, wanted)
        if tag is not None:
            make_tag(api, repo, tag, commit)
    return Published(repo, commit, tag, changed=commit != head)


def send(
    fill: Callable[[Path], None], repo: str, private: bool, tag: str | None, token: str | None = None
) -> Published:
    """`fill` makes what is pushed, in a temporary folder."""
    require_repository(repo)
    with tempfile.TemporaryDirectory(prefix="rocket-hf-") as temporary:
        folder = Path(temporary) / "filled"
        folder.mkdir()
        fill(folder)
        return push(folder, repo, private, tag, token)


class Hashes:
    """Of a file, as git and as the storage of large files name it; read when they are asked for."""

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size

    def matches(self, there: RepoFile) -> bool:
        if there.size != self.size:
            return False
        if there.lfs is not None:
            return self.digest(hashlib.sha256()) == there.lfs.sha256
        return self.digest(hashlib.sha1(b"blob %d\0" % self.size)) == there.blob_id

    def digest(self, hashing: "hashlib._Hash") -> str:
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                hashing.update(chunk)
        return hashing.hexdigest()


def require_visibility(repo: str, is_private: bool, private: bool) -> None:
    if is_private != private:
        found, asked = ("private", "public") if is_private else ("public", "private")
        way = "pass --private" if is_private else "leave --private out"
        raise UserError(f"{repo} is {found} and was to be {asked}: change that in its settings on the Hub, or {way}")


def tagged_commit(api: HfApi, repo: str, tag: str) -> str | None:
    return {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags}.get(tag)


def require_same(api: HfApi, repo: str, tag: str, commit: str, wanted: dict[str, Hashes]) -> None:
    if any(differences(wanted, listing(api, repo, commit))):
        raise UserError(f"{repo} has a tag {tag} of something else (commit {commit[:8]}): choose another tag")


def listing(api: HfApi, repo: str, commit: str) -> dict[str, RepoFile]:
    entries = api.list_repo_tree(repo, recursive=True, revision=commit)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def differences(wanted: dict[str, Hashes], there: dict[str, RepoFile]) -> tuple[list[str], list[str]]:
    """The files to add and those to delete. What is not ours (a license, a video) stays."""
    added = [name for name, hashes in wanted.items() if name not in there or not hashes.matches(there[name])]
    ours = [name for name in there if any(fnmatch(name, pattern) for pattern in OURS)]
    return added, [name for name in ours if name not in wanted]


def commit_difference(api: HfApi, repo: str, head: str, wanted: dict[str, Hashes], tag: str | None) -> str:
    """The commit that holds what is wanted: the head if it does already."""
    added, deleted = differences(wanted, listing(api, repo, head))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, wanted[name].path) for name in added
    ]
    operations += [CommitOperationDelete(name) for name in deleted]
    if not operations:
        return head
    message = f"Publish {tag}" if tag else "Publish with rocket_hf"
    try:
        return api.create_commit(repo, operations, commit_message=message, parent_commit=head).oid
    except HTTPError:
        if own := find_commit_after_lost_response(api, repo, head, wanted):
            return own
        raise
    except ValueError as error:  # the Hub does not like the card's metadata, and says so in several lines
        raise UserError(" ".join(str(error).split())) from None


def find_commit_after_lost_response(api: HfApi, repo: str, head: str, wanted: dict[str, Hashes]) -> str | None:
    """The new head if it is what we sent: then the commit was made, and its answer lost on the way."""
    now = api.model_info(repo).sha
    if now is None or now == head or any(differences(wanted, listing(api, repo, now))):
        return None
    return now


def verify_hashes(api: HfApi, repo: str, commit: str, wanted: dict[str, Hashes]) -> None:
    added, deleted = differences(wanted, listing(api, repo, commit))
    if wrong := [*added, *deleted]:
        raise UserError(f"{wrong[0]} in {repo} at {commit[:8]} is not what was sent: run the command again")


def make_tag(api: HfApi, repo: str, tag: str, commit: str) -> None:
    try:
        api.create_tag(repo, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if error.response.status_code != 409 or tagged_commit(api, repo, tag) != commit:
            raise
