"""What went wrong, in one line for those who run a command."""

from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

# Any trouble with a request to the Hub, of the library that huggingface_hub makes them with: httpx, or since 2 httpx2.
HTTPError: type[Exception] = HfHubHTTPError.__mro__[1]

# What a user can mend: a command ends with the sentence and exit code 2.
MENDABLE = (ValueError, OSError, StrictDataclassError)


def sentence(error: Exception) -> str:
    """What a configuration's own check said stands behind the error of its class."""
    said = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ is not None else error
    return " ".join(str(said).split())
