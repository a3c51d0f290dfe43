"""What the Hub or the network says, in one sentence that names the way out. Headers, and tokens in them, stay out."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .errors import HTTPError, UserError

KINDS = (HTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError, OfflineModeIsEnabled)
AGAIN = "run the command again, it goes on from there"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@contextmanager
def hub_errors_as_user_errors(repo: str) -> Iterator[None]:
    try:
        yield
    except KINDS as error:
        raise UserError(explain(error, repo)) from None
    except RuntimeError as error:  # huggingface_hub's, around what happened to one of several uploads
        if not isinstance(error.__cause__, KINDS):
            raise
        raise UserError(explain(error.__cause__, repo)) from None


def explain(error: Exception, repo: str) -> str:
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, KINDS):
        return explain(error.__cause__, repo)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked: unset it"
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token for the Hub: {LOGIN}"
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated and this token has no access to it: ask for it on {constants.ENDPOINT}/{repo}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such revision: see its branches and tags on {constants.ENDPOINT}/{repo}"
    if isinstance(error, RemoteEntryNotFoundError | LocalEntryNotFoundError):
        return f"{repo} lacks a file that it must hold: publish it again"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repo}, or this token may not see it: check the name, or {LOGIN}"
    if isinstance(error, HfHubHTTPError):
        return explain_status(error.response.status_code, repo)
    return f"the Hub at {constants.ENDPOINT} cannot be reached ({type(error).__name__}): check the network, {AGAIN}"


def explain_status(status: int, repo: str) -> str:
    owner = repo.split("/")[0]
    sentences = {
        401: f"the Hub does not accept this token: {LOGIN}",
        403: f"this token may not write to {repo}: use one that may write for {owner}",
        409: f"the Hub says that {repo} is in conflict with another change: {AGAIN}",
        412: f"someone else has committed to {repo} in the meantime: look at it, then run the command again",
        413: f"the Hub says that the files are too large for {repo}: publish smaller shards",
        429: f"the Hub asks for patience (too many requests): wait some minutes, then {AGAIN}",
    }
    return sentences.get(status, f"the Hub fails for {repo} (status {status}): {AGAIN}")
