"""A dry run's figures, against counts by hand and against a run."""

import re

import torch
from accelerate import Accelerator

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import tiny_config
from rocket_hf.training.recipe_files import read_recipe
from rocket_hf.training.vla.dry_run import describe


def described(policy, dataset, teacher, *changes: str) -> str:
    recipe = read_recipe(
        "tiny", [f"policy={policy}", f"data.datasets.0.id={dataset}", f"teacher.name={teacher}", *changes]
    )
    return describe(recipe, Accelerator(cpu=True))


def test_a_dry_run_tells_pairs_parts_steps_and_cost(policies, stored, teacher):
    text = described(
        policies("pi0"), stored, teacher, "compared_with.name=another", "compared_with.models=2",
        "compared_with.batch_size=8", "compared_with.steps=50",
    )  # fmt: skip
    assert "layer 1 of 3 with the teacher's 2, 6 of 32 hidden units" in text
    assert "layer 3 of 3 with the teacher's 4, 32 of 32 hidden units" in text
    assert "20 of 4 samples: 1 processes x 4 samples x 1 passes" in text
    assert "0.1000 of the samples" in text  # 20 x 4 of 2 x 8 x 50
    whole = sum(parameter.numel() for parameter in RocketForActionPrediction(tiny_config(alignment=None)).parameters())
    parts = dict(re.findall(r"(vision|language|expert|heads) +(?:lora|full) +[\d,]+ of ([\d,]+) weights", text))
    adapted = sum(int(number.replace(",", "")) for number in parts.values())
    lora = sum(int(n.replace(",", "")) for n in re.findall(r"lora +([\d,]+) of", text))
    assert adapted == whole + lora


def test_a_dry_run_counts_operations_as_torch_does(policies, stored, teacher):
    """Without LoRA and alignment, on real tensors, with attention written out, which torch counts on every device."""
    full = [f"parts.{part}=full" for part in ("vision", "language", "expert", "heads")]
    text = described(policies("pi0"), stored, teacher, "alignment=null", *full)
    told = float(re.search(r"([\d.e-]+) TFLOP a sample", text)[1]) * 1e12
    model = RocketForActionPrediction(tiny_config(alignment=None)).train()
    model.set_attn_implementation("eager")
    batch = model.config.fake_batch(1, prompt_length=24)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        torch.stack(list(model(**batch).losses.values())).sum().backward()
    assert abs(told / counter.get_total_flops() - 1) < 0.01


def test_what_no_loss_reaches_is_named(policies, stored, teacher):
    text = described(policies("pi0"), stored, teacher, "alignment.student_layers=[0,1,2]")
    assert "frozen, as no loss reaches them: 5 tensors, policy.layers.2.language.attention.o_proj.weight" in text
