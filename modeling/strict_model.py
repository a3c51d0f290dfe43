"""Base class of models that load strictly: missing or unexpected weights are errors, except for training-only heads."""

import copy
import os
from collections.abc import Mapping
from typing import Any, Self

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from .errors import UserError
from .stored_weights import Shapes, find_file, read_json_object, read_stored_shapes

ADAPTER_CONFIG = "adapter_config.json"  # of PEFT


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
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if adapter := (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path"):
            raise adapter_error(adapter, {})  # AutoModel was called with an adapter, whose base is `source`
        if isinstance(source, (str, os.PathLike)) and "state_dict" not in kwargs:
            cls.check_stored_weights(source, kwargs)
        try:
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise UserError(
                f"the weights of {args[0]} cannot be read ({error}): download or export them again"
            ) from error
        model.revision = kwargs.get("revision")
        names = {
            "missing": info["missing_keys"],
            "unexpected": info["unexpected_keys"],
            "of another shape": {entry[0] for entry in info["mismatched_keys"]},
        }
        cls.raise_on_problems(names, {name for name, _ in model.named_parameters()})
        return (model, info) if output_loading_info else model  # type: ignore[return-value]

    def load_adapter(self, peft_model_id: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Raise UserError: transformers would load an adapter without the robot that it was trained for."""
        raise adapter_error(str(peft_model_id), kwargs)

    @classmethod
    def check_stored_weights(cls, source: str | os.PathLike, kwargs: Mapping[str, Any]) -> None:
        """Compare the shapes in the weights' files with those of the configuration, before anything is allocated.

        transformers allocates all weights whose shapes differ, so that a wrong number in a configuration could fill the
        memory. A source without safetensors is left to transformers, which reports it, unless it is an adapter.
        """
        stored = read_stored_shapes(source, kwargs)
        if stored is None:
            if find_file(source, ADAPTER_CONFIG, kwargs) is not None:
                raise adapter_error(source, kwargs)
            return
        config = copy.deepcopy(kwargs.get("config"))
        if not isinstance(config, cls.config_class):
            # transformers warns about trust_remote_code=True wherever no Auto class reads it.
            arguments = {**kwargs, "trust_remote_code": False, "return_unused_kwargs": True}
            config, _ = cls.config_class.from_pretrained(source, **arguments)
        with torch.device("meta"):
            model = cls(config)
        expected: Shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        ignored = tuple(pattern.removeprefix("^") for pattern in model._keys_to_ignore_on_load_unexpected or ())
        names = {
            "missing": expected.keys() - stored.keys(),
            "unexpected": {name for name in stored.keys() - expected.keys() if not name.startswith(ignored)},
            "of another shape": {name for name in expected.keys() & stored.keys() if expected[name] != stored[name]},
        }
        cls.raise_on_problems(names, set(expected))

    @classmethod
    def raise_on_problems(cls, names: Mapping[str, set[str] | list[str]], known: set[str]) -> None:
        """Raise `UserError` with the first weights that do not fit. All weights of a training head may be missing."""
        missing = set(names["missing"])
        for head in cls.training_heads():
            of_head = {name for name in known if name.startswith(head)}
            missing -= of_head if of_head <= missing else set()
        for problem, affected in (dict(names) | {"missing": missing}).items():
            if affected:
                listed = ", ".join(sorted(affected)[:3]) + (" ..." if len(affected) > 3 else "")
                raise UserError(f"these weights do not fit the configuration: {len(affected)} {problem}: {listed}")


def adapter_error(adapter: str | os.PathLike, kwargs: Mapping[str, Any]) -> UserError:
    """Return the error that explains how to load an adapter; `kwargs` are arguments of `from_pretrained`."""
    path = find_file(adapter, ADAPTER_CONFIG, kwargs)
    config = read_json_object(path) if path is not None else {}
    base, revision = config.get("base_model_name_or_path", "OWNER/BASE"), config.get("revision", "main")
    return UserError(
        f"{adapter} is an adapter, which AutoModel cannot load. Load its base policy, and add the adapter with PEFT "
        f'(pip install peft): base = AutoModel.from_pretrained("{base}", revision="{revision}", '
        f'trust_remote_code=True, dtype="float32"), then policy = '
        f'PeftModel.from_pretrained(base.for_robot("{adapter}"), "{adapter}").merge_and_unload()'
    )
