"""Errors that a user can fix, and how commands print them."""

from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

from .modeling.errors import UserError

__all__ = ["USER_ERRORS", "HTTPError", "UserError", "format_error"]

# Base class of all request errors of huggingface_hub's HTTP library: httpx, or httpx2 since huggingface_hub 2.
HTTPError: type[Exception] = HfHubHTTPError.__mro__[1]

# Errors that commands print in one sentence, with exit code 2. transformers' configurations wrap the UserError of their
# own validation in a StrictDataclassError.
USER_ERRORS = (UserError, StrictDataclassError)

# Longer messages, with values of thousands of characters from damaged files, are shortened in the middle.
LONGEST_MESSAGE = 1500


def format_error(error: Exception) -> str:
    """Return the message of an error on one line; of a wrapped validation error, the message of its cause."""
    cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ is not None else error
    text = " ".join(str(cause).split())
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:1000]} ... {text[-400:]}"
