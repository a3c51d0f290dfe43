"""Loader of tokenizers from tokenizer.json alone, by transformers' general class, so that no code is ever executed."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .checkpoint_files import read_json
from .errors import UserError
from .hub import resolve

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(name: str | Path, *, ignore_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or Hub repository. For `ignore_code`, see `rocket_hf.hub.resolve`."""
    folder = resolve(name, TOKENIZER_FILES, kind="tokenizer", ignore_code=ignore_code).folder
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"the tokenizer {name} has no tokenizer.json: save it with transformers' "
            "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`, or pass another one with --tokenizer"
        )
    read_json(path)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:
        # The library tokenizers, which is written in Rust, raises plain exceptions for a malformed file.
        if type(error) is not Exception and not isinstance(error, OSError | ValueError | KeyError | TypeError):
            raise
        raise UserError(
            f"the tokenizer {name} cannot be loaded ({error}): download it again, or pass another one with --tokenizer"
        ) from error
    tokenizer.init_kwargs.pop("auto_map", None)  # of a class that was not used; saving would write it again
    return tokenizer
