"""Upload a checked folder to a Hub repository in one atomic commit. Safe to retry.

1. Create the repository if needed; check its visibility and that the tag is unused.
2. Make one commit on the head that was seen: add changed files, delete stale files of earlier uploads.
3. Compare the hash of every file on the server with the local one.
4. Create the tag.
"""

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from rocket_hf import __version__
from rocket_hf.errors import HTTPError, UserError
from rocket_hf.hub import hub_errors_as_user_errors, require_repo_id, require_tag
from rocket_hf.hub_cards.cards import EVAL_RESULTS, FIGURES

# Patterns of files from earlier uploads, by folder. Those missing from the new folder are deleted, because loaders
# would pick them up, or because the card no longer shows them.
STALE_FILES = {
    "": ("*.py", "*.json", "*.jinja", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.model", "merges.txt", "README.md"),
    FIGURES: ("*.png",),
}
CHUNK_BYTES = 2**22


@dataclass
class Published:
    """Commit of a published repository."""

    repo: str
    commit: str
    tag: str | None
    changed: bool  # whether this push made the commit

    @property
    def revision(self) -> str:
        return self.tag or self.commit


class LocalFile:
    """File of the folder to upload; its git or LFS hash is computed on comparison."""

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size

    def matches(self, remote: RepoFile) -> bool:
        """Return whether a file on the Hub has the same content."""
        if remote.size != self.size:
            return False
        if remote.lfs is not None:
            return self.digest(hashlib.sha256()) == remote.lfs.sha256
        return self.digest(hashlib.sha1(b"blob %d\0" % self.size)) == remote.blob_id

    def digest(self, hashing: "hashlib._Hash") -> str:
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                hashing.update(chunk)
        return hashing.hexdigest()


LocalFiles = dict[str, LocalFile]
RemoteFiles = dict[str, RepoFile]


def push_folder(folder: Path, repo: str, private: bool, tag: str | None, token: str | None = None) -> Published:
    """Push `folder` (already checked) to `repo`; return the resulting commit."""
    require_repo_id(repo)
    if tag is not None:
        require_tag(tag)
    api = HfApi(token=token, library_name="rocket_hf", library_version=__version__)
    files = local_files(folder)
    with hub_errors_as_user_errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        info = api.model_info(repo)
        require_visibility(repo, bool(info.private), private)
        if tag is not None and (commit := tagged_commit(api, repo, tag)):
            require_same_files(api, repo, tag, commit, files)
            return Published(repo, commit, tag, changed=False)
        head = info.sha
        assert head is not None
        commit = commit_difference(api, repo, head, files, tag)
        verify_hashes(api, repo, commit, files)
        if tag is not None:
            create_tag(api, repo, tag, commit)
    return Published(repo, commit, tag, changed=commit != head)


def list_files(repo: str, revision: str | None) -> tuple[str, RemoteFiles]:
    """Return the commit of a revision of a repository, and its files by path."""
    with hub_errors_as_user_errors(repo):
        api = HfApi()
        commit = api.model_info(repo, revision=revision).sha
        assert commit is not None
        return commit, remote_files(api, repo, commit)


def local_files(folder: Path) -> LocalFiles:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): LocalFile(path) for path in paths}


def remote_files(api: HfApi, repo: str, commit: str) -> RemoteFiles:
    entries = api.list_repo_tree(repo, recursive=True, revision=commit)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def require_visibility(repo: str, is_private: bool, private: bool) -> None:
    if is_private != private:
        found, requested = ("private", "public") if is_private else ("public", "private")
        fix = "pass --private" if is_private else "remove --private"
        raise UserError(
            f"{repo} is {found}, but should be {requested}: change the visibility in its settings on the Hub, or {fix}"
        )


def tagged_commit(api: HfApi, repo: str, tag: str) -> str | None:
    return {ref.name: ref.target_commit for ref in api.list_repo_refs(repo).tags}.get(tag)


def require_same_files(api: HfApi, repo: str, tag: str, commit: str, files: LocalFiles) -> None:
    if any(differences(files, remote_files(api, repo, commit))):
        raise UserError(f"the tag {tag} of {repo} is in use for other files (commit {commit[:8]}): choose another tag")


def differences(local: LocalFiles, remote: RemoteFiles) -> tuple[list[str], list[str]]:
    """Return the paths to add and the paths to delete. Other files on the Hub (a license, a video) are kept."""
    added = [path for path, file in local.items() if path not in remote or not file.matches(remote[path])]
    return added, [path for path in remote if is_uploaded_file(path) and path not in local]


def is_uploaded_file(path: str) -> bool:
    """Return whether a path on the Hub has the name of a file that publishing uploads."""
    folder, _, name = path.rpartition("/")
    return path == EVAL_RESULTS or any(fnmatch(name, pattern) for pattern in STALE_FILES.get(folder, ()))


def commit_difference(api: HfApi, repo: str, head: str, files: LocalFiles, tag: str | None) -> str:
    """Return the commit that has the local files: a new one, or the head if nothing differs."""
    added, deleted = differences(files, remote_files(api, repo, head))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, files[path].path) for path in added
    ]
    operations += [CommitOperationDelete(path) for path in deleted]
    if not operations:
        return head
    message = f"Publish {tag}" if tag else "Publish with rocket_hf"
    try:
        return api.create_commit(repo, operations, commit_message=message, parent_commit=head).oid
    except HTTPError:
        if commit := find_commit_after_lost_response(api, repo, head, files):
            return commit
        raise
    except ValueError as error:  # the Hub rejects the card's metadata, with a message of several lines
        raise UserError(" ".join(str(error).split())) from None


def find_commit_after_lost_response(api: HfApi, repo: str, head: str, files: LocalFiles) -> str | None:
    """Return the new head if it has the local files: the commit was made, and only its response was lost."""
    current = api.model_info(repo).sha
    if current is None or current == head or any(differences(files, remote_files(api, repo, current))):
        return None
    return current


def verify_hashes(api: HfApi, repo: str, commit: str, files: LocalFiles) -> None:
    added, deleted = differences(files, remote_files(api, repo, commit))
    if wrong := [*added, *deleted]:
        raise UserError(
            f"{wrong[0]} in {repo} at commit {commit[:8]} differs from the local file: run the command again"
        )


def create_tag(api: HfApi, repo: str, tag: str, commit: str) -> None:
    try:
        api.create_tag(repo, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if error.response.status_code != 409 or tagged_commit(api, repo, tag) != commit:
            raise
