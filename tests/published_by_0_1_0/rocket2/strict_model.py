"""A model that loads strictly: weights that are missing or left over are an error, but for the heads of training."""

from typing import Any, Self

from transformers import PreTrainedModel


class StrictModel(PreTrainedModel):
    def __init__(self, config: Any):
        super().__init__(config)
        self.revision: str | None = None  # that it was loaded from, if that was said

    @classmethod
    def training_heads(cls) -> tuple[str, ...]:
        """The beginnings of the names of the weights of each head that exists only in training."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Self:
        """Like transformers', but weights that are missing or left over are an error instead of a warning.

        A head of training may be missing whole, and is then new.
        """
        kwargs["ignore_mismatched_sizes"] = True  # reported below, with the names
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
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
                raise ValueError(f"these weights do not fit the configuration: {len(names)} {problem}: {listed}")
        return (model, info) if output_loading_info else model  # type: ignore[return-value]
