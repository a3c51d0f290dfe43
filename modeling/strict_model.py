"""Base class of models that load strictly: missing or unexpected weights are errors, except for training-only heads."""

from typing import Any, Self

from safetensors import SafetensorError
from transformers import PreTrainedModel

from .errors import UserError


class StrictModel(PreTrainedModel):
    """transformers model whose `from_pretrained` raises an error where transformers' own only warns."""

    # transformers' Trainer would otherwise add `num_items_in_batch` to the keyword arguments of `forward`.
    accepts_loss_kwargs = False

    def __init__(self, config: Any):
        super().__init__(config)
        self.revision: str | None = None  # the `revision` argument of `from_pretrained`

    @classmethod
    def training_heads(cls) -> tuple[str, ...]:
        """Return the weight-name prefix of each head that exists only in training."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Self:
        """Load a model like transformers' `from_pretrained`, but raise `UserError` if the weights do not fit.

        All weights of a training-only head may be missing together; such a head is newly initialized.

        Args:
            *args: A folder or the id of a Hub repository, as in transformers.
            output_loading_info: Whether to return transformers' loading report too.
            **kwargs: transformers' arguments (`revision`, `dtype`, ...) and overrides of configuration keys.
        """
        kwargs["ignore_mismatched_sizes"] = True  # reported below, with the names of the weights
        try:
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise UserError(
                f"the weights of {args[0]} cannot be read ({error}): download or export them again"
            ) from error
        model.revision = kwargs.get("revision")
        missing = set(info["missing_keys"])
        for head in cls.training_heads():
            names = {name for name, _ in model.named_parameters() if name.startswith(head)}
            missing -= names if names <= missing else set()
        problems = {
            "missing": missing,
            "unexpected": set(info["unexpected_keys"]),
            "of another shape": {entry[0] for entry in info["mismatched_keys"]},
        }
        for problem, names in problems.items():
            if names:
                listed = ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")
                raise UserError(f"these weights do not fit the configuration: {len(names)} {problem}: {listed}")
        return (model, info) if output_loading_info else model  # type: ignore[return-value]
