"""Local folders of Hub repositories, and Hub errors as messages for the user.

This is the only module that resolves `OWNER/NAME[@REVISION]` to a local folder and its commit, for policies, teachers,
datasets and conversion sources alike. Error messages never contain request headers, because those contain the token.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import HTTPError, UserError
from .files import expand_user
from .foreign_code import check_files_inside, check_no_foreign_code

REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TAG = re.compile(r"\w[\w./+-]{0,254}", re.ASCII)
INVALID_IN_TAG = re.compile(r"\.\.|//|/\.|\.lock(/|$)|[./]$")
# LeRobot tags the last commit of each version of its dataset format.
LEROBOT_FORMAT_TAG = "v3.0"

HUB_ERRORS = (HTTPError, HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError, OfflineModeIsEnabled)
# Files that are downloaded of a policy: no logs, no videos, no optimizer state.
POLICY_FILES = ("*.json", "*.safetensors", "*.py", "*.jinja", "*.model", "*.txt")
RUN_AGAIN = "run the command again, completed transfers are kept"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class HubSource:
    """Hub repository at a revision; the default revision if none is given."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


@dataclass(frozen=True)
class Resolved:
    """Local folder of a source. `commit` is that of the Hub repository, or None for a folder of this machine."""

    folder: Path
    commit: str | None


def require_repo_id(text: str) -> None:
    if not REPO_ID.fullmatch(text):
        raise UserError(f"invalid repository id {text!r}: expected OWNER/NAME")


def require_tag(name: str) -> None:
    """Raise UserError if git does not accept `name` as the name of a tag, before anything is committed."""
    if not TAG.fullmatch(name) or INVALID_IN_TAG.search(name):
        raise UserError(
            f"invalid tag {name!r}: use letters, digits, dots, dashes, underscores and slashes, as in v1.0, without "
            "'..', '//' or a dot, slash or '.lock' at the end of a part"
        )


def parse_source(text: str, kind: str = "repository", revision: str | None = None) -> HubSource:
    """Parse `OWNER/NAME` or `OWNER/NAME@REVISION`. `revision` is one that was given separately."""
    repo, _, own_revision = text.partition("@")
    if not REPO_ID.fullmatch(repo):
        raise UserError(f"invalid {kind} {text!r}: expected OWNER/NAME or OWNER/NAME@REVISION")
    if own_revision and revision is not None and revision != own_revision:
        raise UserError(f"the {kind} {text!r} was given with a second revision {revision!r}: remove one of the two")
    return HubSource(repo, own_revision or revision)


def resolve(
    source: str | Path,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    repo_type: str = "model",
    kind: str = "policy",
    ignore_code: bool = False,
) -> Resolved:
    """Return the folder of `source`, downloading the files that match `patterns` if it is a Hub repository.

    `source` is a local folder, `OWNER/NAME` or `OWNER/NAME@REVISION`; `kind` names it in error messages. Without a
    network, a snapshot in the cache is used. A folder that names foreign code is refused; with `ignore_code`, for
    readers that never execute any, only one that names files outside of itself.
    """
    resolved = find_folder(source, patterns, revision, repo_type, kind)
    (check_files_inside if ignore_code else check_no_foreign_code)(resolved.folder)
    return resolved


def find_folder(
    source: str | Path, patterns: Sequence[str], revision: str | None, repo_type: str, kind: str
) -> Resolved:
    folder = expand_user(source)
    if str(source) and folder.is_dir():
        if revision is not None:
            raise UserError(f"{source} is a folder, which has no revision {revision!r}: remove the revision")
        return Resolved(folder, None)
    if not REPO_ID.fullmatch(str(source).partition("@")[0]):
        raise UserError(
            f"the {kind} '{source}' is neither a local folder nor a Hub repository: expected a folder, OWNER/NAME or "
            "OWNER/NAME@REVISION"
        )
    hub_source = parse_source(str(source), kind, revision)
    try:
        with hub_errors_as_user_errors(hub_source.id):
            snapshot = download_snapshot(hub_source, patterns, repo_type)
    except UserError as error:
        raise UserError(
            f"the {kind} '{hub_source}' is not a local folder and cannot be downloaded from the Hub: {error}"
        ) from None
    return Resolved(snapshot, snapshot.name)  # the cache names the folder of a snapshot by its commit


def download_snapshot(source: HubSource, patterns: Sequence[str], repo_type: str) -> Path:
    """Download files of the first of the source's revisions that exists."""
    candidates = revisions(source, repo_type)
    for revision in candidates:
        try:
            return Path(
                snapshot_download(
                    source.id,
                    repo_type=repo_type,
                    revision=revision,
                    allow_patterns=list(patterns),
                    cache_dir=cache_folder(repo_type),
                )
            )
        except RevisionNotFoundError:
            if revision == candidates[-1]:
                raise
    raise AssertionError("the last revision was returned or raised")


def revisions(source: HubSource, repo_type: str) -> list[str]:
    """Return the revisions to try: the one that was given, else the tag of lerobot's format for datasets, then main."""
    if source.revision:
        return [source.revision]
    return [LEROBOT_FORMAT_TAG, "main"] if repo_type == "dataset" else ["main"]


def cache_folder(repo_type: str) -> Path | None:
    """Return lerobot's own cache for datasets, so that nothing is downloaded twice; None is the Hub's default cache."""
    if repo_type != "dataset":
        return None
    from lerobot.utils.constants import HF_LEROBOT_HUB_CACHE

    return HF_LEROBOT_HUB_CACHE


def cached_file(source: str, name: str, repo_type: str = "model") -> Path | None:
    """Return the path of a repository's file in the cache, or None if it is not cached. Nothing is downloaded."""
    hub_source = parse_source(source)
    for revision in revisions(hub_source, repo_type):
        path = try_to_load_from_cache(
            hub_source.id, name, revision=revision, repo_type=repo_type, cache_dir=cache_folder(repo_type)
        )
        if isinstance(path, str):
            return Path(path)
    return None


def cached_commit(source: str, name: str, repo_type: str = "model") -> str | None:
    """Return the commit of the cached snapshot that contains the file `name`, or None."""
    path = cached_file(source, name, repo_type)
    return path.parents[name.count("/")].name if path is not None else None


@contextmanager
def hub_errors_as_user_errors(repo: str) -> Iterator[None]:
    """Raise a UserError in place of any error of the Hub, the network or the Hub's cache."""
    try:
        yield
    except HUB_ERRORS as error:
        raise UserError(explain(error, repo)) from None
    except RuntimeError as error:  # raised by huggingface_hub around the error of one of several uploads
        if not isinstance(error.__cause__, HUB_ERRORS):
            raise
        raise UserError(explain(error.__cause__, repo)) from None
    except OSError as error:
        raise UserError(f"a file of {repo} cannot be read or written: {error}") from error


def explain(error: BaseException, repo: str) -> str:
    """Return the cause of a Hub error and its fix in one sentence."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HUB_ERRORS):
        return explain(error.__cause__, repo)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub cannot be reached: unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no Hub token on this machine: {LOG_IN}"
    if isinstance(error, HFValidationError):
        return f"invalid repository id {repo!r}: expected OWNER/NAME"
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated and your token has no access: request it on {constants.ENDPOINT}/{repo}, then {LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such revision: choose one of the branches and tags on {constants.ENDPOINT}/{repo}"
    if isinstance(error, RemoteEntryNotFoundError | LocalEntryNotFoundError):
        return f"{repo} lacks a required file: publish it again"
    if isinstance(error, RepositoryNotFoundError):
        return f"the repository {repo} does not exist, or your token has no access to it: check the name, or {LOG_IN}"
    if isinstance(error, HfHubHTTPError):
        return explain_status(error.response.status_code, repo)
    return f"the Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}): check the network, {RUN_AGAIN}"


def explain_status(status: int, repo: str) -> str:
    owner = repo.split("/")[0]
    messages = {
        401: f"the Hub does not accept your token: {LOG_IN}",
        403: f"your token may not write to {repo}: use a token with write access to {owner}",
        409: f"the Hub reports a conflict with another change of {repo}: {RUN_AGAIN}",
        412: f"someone else committed to {repo} in the meantime: check that commit, then run the command again",
        413: f"the Hub rejects files of {repo} as too large: publish smaller shards",
        429: f"the Hub limits the rate of requests: wait a few minutes, then {RUN_AGAIN}",
    }
    return messages.get(status, f"the Hub failed for {repo} (HTTP status {status}): {RUN_AGAIN}")
