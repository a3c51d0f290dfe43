"""The interface between the training loop and what it trains: `vla/task.py` and `rocket2/task.py` implement it."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from .input_fingerprints import Fingerprints
from .journal import StepTimer

Losses = dict[str, Tensor]  # by name: "action/...", "alignment/..." and "auxiliary/..."


class TrainingTask(ABC):
    """Data, loss weights, validation and export of the policy that a run trains."""

    policy: Any  # a transformers model whose output has `losses`
    notes: list[str]  # facts that the user should know before training starts, such as a non-commercial license
    has_validation_data: bool

    @staticmethod
    @abstractmethod
    def part_of(name: str) -> str:
        """Return the policy part that a weight belongs to. "heads" and "projector" may have own learning rates."""

    @abstractmethod
    def make_trainable(self) -> None:
        """Freeze and unfreeze weights. Called before the policy is placed on its devices."""

    @abstractmethod
    def input_fingerprints(self) -> Fingerprints:
        """Return the fingerprints of everything that the run reads. Called in the main process."""

    @abstractmethod
    def batches(self, first_step: int) -> Iterator[list[Any]]:
        """Yield this rank's batches of each step, one batch per pass, beginning with `first_step`."""

    @abstractmethod
    def model_inputs(self, batch: Any, step: int, previous: ModelOutput | None, timer: StepTimer) -> dict[str, Any]:
        """Return the model's arguments for a batch. `previous` is the output for the step's previous batch."""

    @abstractmethod
    def loss_weights(self, names: Collection[str], step: int) -> dict[str, float]:
        """Return the weight of each loss at `step`. The weighted sum of all losses is minimized."""

    def losses_to_log(self, losses: Losses, step: int) -> Losses:
        """Return the losses that have a meaning at `step`."""
        return losses

    @abstractmethod
    def extra_metrics(self, batches: list[Any], step: int, timer: StepTimer) -> dict[str, Any]:
        """Return metrics of the coming step in addition to its losses."""

    @abstractmethod
    def validate(self, steps: int) -> dict[str, float]:
        """Return metrics on held-out data after `steps` steps. The checkpoint with the lowest "error" is the best."""

    @abstractmethod
    def policy_for_export(self) -> Any:
        """Return the policy without its training-only parts. All ranks must call this."""

    @abstractmethod
    def save_policy(self, policy: Any, folder: Path) -> None:
        """Write an exported policy with its code and self-test to `folder`, completely or not at all."""

    @abstractmethod
    def describe_error(self, error: float) -> str:
        """Return the validation error with its unit, for the summary of a run."""
