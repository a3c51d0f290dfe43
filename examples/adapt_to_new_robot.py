"""Adapt a policy to a robot with other cameras, state and actions: train a LoRA adapter with PEFT, save and load it.

    python examples/adapt_to_new_robot.py       # a small untrained policy and a generated dataset of another robot
    python examples/adapt_to_new_robot.py --policy you/base --dataset you/new-robot

`rocket-hf adapt` does the same with validation, checkpoints and several GPUs.
"""

import argparse
import random
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import default_collate

from rocket_hf import RocketForActionPrediction, RocketProcessor
from rocket_hf.study.small_policy import write_small_policy
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.data.dataset_statistics import compute_dataset_statistics
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.robot_from_dataset import format_robot_comparison, read_robot_from_dataset
from rocket_hf.training.recipe import DatasetConfig

STEPS, BATCH_SIZE, LEARNING_RATE = 10, 8, 1e-3
LORA = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], modules_to_save=["action_in", "action_out"])

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--policy", help="folder or Hub id of a policy (default: build an untrained one)")
parser.add_argument("--dataset", help="folder or Hub id of the new robot's LeRobot dataset (default: generate one)")
arguments = parser.parse_args()
folder = Path(tempfile.mkdtemp())
if arguments.policy is None:
    write_small_policy(folder / "base", write_tiny_dataset(folder / "old-robot"))
new_robot = {"cameras": {"top": (64, 64)}, "state_dim": 4, "action_dim": 3}
dataset = DatasetConfig(id=arguments.dataset or str(write_tiny_dataset(folder / "new-robot", **new_robot)))

base = RocketForActionPrediction.from_pretrained(arguments.policy or folder / "base")
robot = read_robot_from_dataset(dataset, base.config)
print("\n".join(format_robot_comparison(base.config, robot)))
data = RobotDataset(dataset, base.for_robot(robot).config)
tokenizer = RocketProcessor.from_pretrained(arguments.policy or folder / "base").tokenizer
processor = RocketProcessor.for_config(base.for_robot(robot).config, tokenizer, compute_dataset_statistics([data]))

policy = get_peft_model(base.for_robot(robot), LORA).train()
policy.print_trainable_parameters()
optimizer = torch.optim.AdamW((weight for weight in policy.parameters() if weight.requires_grad), lr=LEARNING_RATE)
for step in range(STEPS):
    samples = default_collate([data.sample(index) for index in random.sample(range(len(data)), BATCH_SIZE)])
    names = ("images", "task", "state", "actions", "action_is_pad")
    output = policy(**processor(**{name: samples[name] for name in names}))
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step:2} loss {output.loss.item():.3f}")
policy.save_pretrained(folder / "adapter")
adapted = PeftModel.from_pretrained(base.for_robot(robot), folder / "adapter").merge_and_unload()
print(f"adapter written to {folder / 'adapter'}; action dimensions of the adapted policy: {adapted.config.action_dim}")
