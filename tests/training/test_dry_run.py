"""The dry run of a VLA recipe, compared with counts by hand and with torch."""

import re

import torch
from accelerate import Accelerator

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import tiny_config
from rocket_hf.training.dry_run import describe_run
from rocket_hf.training.recipe_files import read_recipe


def dry_run(policy, dataset, teacher, *changes: str) -> str:
    recipe = read_recipe(
        "tiny", [f"policy={policy}", f"data.datasets.0.id={dataset}", f"teacher.name={teacher}", *changes]
    )
    return describe_run(recipe, Accelerator(cpu=True))


def test_dry_run_describes_pairs_parts_steps_and_cost(policies, image_dataset, teacher):
    text = dry_run(
        policies("pi0"), image_dataset, teacher, "compared_with.name=another", "compared_with.models=2",
        "compared_with.batch_size=8", "compared_with.steps=50",
    )  # fmt: skip
    assert "layer 1 of 3 with teacher layer 2, 6 of 32 hidden units" in text
    assert "layer 3 of 3 with teacher layer 4, 32 of 32 hidden units" in text
    assert "20 of 4 samples: 1 processes x 4 samples x 1 passes" in text
    assert "0.1000 of the samples" in text  # 20 x 4 of 2 x 8 x 50
    total = sum(parameter.numel() for parameter in RocketForActionPrediction(tiny_config(alignment=None)).parameters())
    parts = dict(re.findall(r"(vision|language|expert|heads) +(?:lora|full) +[\d,]+ of ([\d,]+) weights", text))
    adapted = sum(int(number.replace(",", "")) for number in parts.values())
    lora = sum(int(n.replace(",", "")) for n in re.findall(r"lora +([\d,]+) of", text))
    assert adapted == total + lora


def test_dry_run_counts_as_many_flops_as_torch(policies, image_dataset, teacher):
    """Without LoRA and alignment, on real tensors, with eager attention, whose FLOPs torch counts on every device."""
    full = [f"parts.{part}=full" for part in ("vision", "language", "expert", "heads")]
    text = dry_run(policies("pi0"), image_dataset, teacher, "alignment=null", *full)
    flops = float(re.search(r"([\d.e-]+) TFLOP per sample", text)[1]) * 1e12
    model = RocketForActionPrediction(tiny_config(alignment=None)).train()
    model.set_attn_implementation("eager")
    batch = model.config.fake_batch(1, prompt_length=24)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        torch.stack(list(model(**batch).losses.values())).sum().backward()
    assert abs(flops / counter.get_total_flops() - 1) < 0.01


def test_dry_run_names_weights_that_no_loss_reaches(policies, image_dataset, teacher):
    text = dry_run(policies("pi0"), image_dataset, teacher, "alignment.student_layers=[0,1,2]")
    assert "frozen, because no loss reaches them: 5 tensors, policy.layers.2.language.attention.o_proj.weight" in text
