"""`forward` returns one weighted loss, so that transformers' `Trainer` trains the policies."""

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from rocket_hf.modeling.configuration_rocket import AlignmentConfig, RocketConfig
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.policy_interface import weighted_loss
from rocket_hf.modeling.rocket2_interface import weighted_rocket2_loss
from rocket_hf.tiny import TINY_POLICIES, tiny_config

from .rocket2_tiny import FACTORED, TINY

STEPS = 5


class Samples(Dataset):
    """Samples without a batch dimension, taken from a fake batch."""

    def __init__(self, batch: dict[str, Any], targets: dict[int, torch.Tensor] | None):
        self.batch, self.targets = batch, targets

    def __len__(self) -> int:
        return len(self.batch["images"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {key: value[index] for key, value in self.batch.items()}
        if self.targets is not None:
            sample["targets"] = {layer: value[index] for layer, value in self.targets.items()}
        return sample


def train(model: torch.nn.Module, samples: Samples, folder: Any) -> list[float]:
    """Train for five steps; return the loss of each step."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=3e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,  # the samples are keyword arguments of `forward`
        label_names=["actions"],
        use_cpu=True,
        disable_tqdm=True,
    )
    collate = torch.utils.data.default_collate
    trainer = Trainer(model, arguments, train_dataset=samples, eval_dataset=samples, data_collator=collate)
    trainer.train()
    evaluated = trainer.evaluate()["eval_loss"]
    assert torch.tensor(evaluated).isfinite()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("has_head", [True, False], ids=["aligned", "plain"])
@pytest.mark.parametrize("family", TINY_POLICIES)
def test_trainer_trains_policy_for_five_steps(family, has_head, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(family) if has_head else tiny_config(family, alignment=None)
    model = RocketForActionPrediction(config)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    losses = train(model, Samples(config.fake_batch(4), config.fake_targets(4) if has_head else None), tmp_path)
    assert len(losses) == STEPS and all(torch.tensor(loss).isfinite() for loss in losses)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert any(name.startswith("policy.") for name in changed)
    assert any(name.startswith("alignment_head.") for name in changed) == has_head


def test_trainer_trains_rocket2_policy_for_five_steps(tmp_path):
    torch.manual_seed(0)
    model = Rocket2ForActionPrediction(Rocket2Config(**(TINY | FACTORED)))
    losses = train(model, Samples(model.config.fake_batch(4), None), tmp_path)
    assert len(losses) == STEPS and losses[-1] < losses[0]


def test_loss_is_action_losses_plus_weighted_mean_of_alignment_losses():
    torch.manual_seed(0)
    model = RocketForActionPrediction(tiny_config("smolvla")).train()
    assert model.config.alignment.weight == 0.5
    batch, targets = model.config.fake_batch(), model.config.fake_targets()
    for weight in (0.5, 0.0, 2.0):
        model.config.alignment.weight = weight
        output = model(**batch, targets=targets)
        aligned = [output.losses[f"alignment/{pair}"] for pair in ("1-2", "2-3", "3-4")]
        expected = output.losses["action/flow_matching"] + weight * (aligned[0] + aligned[1] + aligned[2]) / 3
        torch.testing.assert_close(output.loss, expected)
        assert output["loss"] is output.loss and output[0] is output.loss


def test_weighted_losses_match_hand_computation():
    losses = {"action/a": 1.0, "action/b": 2.0, "alignment/1-2": 0.5, "alignment/2-3": 0.25}
    tensors = {name: torch.tensor(value) for name, value in losses.items()}
    assert weighted_loss(tensors, 0.5).item() == 3.0 + 0.5 * 0.375
    assert weighted_loss({"action/a": torch.tensor(1.5)}, 0.5).item() == 1.5
    losses = {"action/move": 100.0, "action/turn": 200.0, "auxiliary/visibility": 10.0, "auxiliary/box": 2.0}
    tensors = {name: torch.tensor(value) for name, value in losses.items()}
    assert weighted_rocket2_loss(tensors).item() == pytest.approx(1.0 + 2.0 + 0.1 + 0.2)
    assert weighted_rocket2_loss({}) is None


def test_loss_of_model_without_head_is_sum_of_action_losses():
    model = RocketForActionPrediction(tiny_config("openvla-oft", alignment=None)).train()
    output = model(**model.config.fake_batch())
    assert list(output.losses) == ["action/l1"] and torch.equal(output.loss, output.losses["action/l1"])


def test_configuration_without_alignment_weight_loads_with_default():
    written = tiny_config("pi0").to_dict()
    assert written["alignment"].pop("weight") == 0.5
    assert RocketConfig.from_dict(written).alignment.weight == 0.5
    with pytest.raises(StrictDataclassError, match=r"weight must be 0 or positive, got -1\.0"):
        AlignmentConfig(weight=-1.0)
