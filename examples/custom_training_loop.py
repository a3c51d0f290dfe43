"""Train a policy in a loop of your own, with batches of a LeRobot dataset and the features of a teacher as targets.

    python examples/custom_training_loop.py     # a generated dataset, a small untrained policy, the embedded teacher
    python examples/custom_training_loop.py --policy you/base --dataset FOLDER --teacher facebook/VGGT-1B

Change LAYERS for another policy or teacher. `rocket-hf train` adds validation, checkpoints, recipes and feature caches.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

from rocket_hf import AlignmentConfig, RocketForActionPrediction, RocketProcessor, export_policy, load_teacher
from rocket_hf.study.small_policy import write_small_policy
from rocket_hf.teachers.registration import Registration
from rocket_hf.teachers.scene import scene_images
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.vla.targets import image_windows

LAYERS = {"student_layers": [1, 2, -1], "teacher_layers": [2, 3, 4]}  # for the small policy and the embedded teacher
EPOCHS, BATCH_SIZE, LEARNING_RATE = 1, 8, 1e-3

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--policy", help="folder or Hub id of a policy (default: build an untrained one)")
parser.add_argument("--dataset", help="folder of a LeRobot dataset (default: generate one)")
parser.add_argument("--teacher", default="embedded", help="folder or Hub id of a teacher (default: %(default)s)")
arguments = parser.parse_args()
folder = Path(tempfile.mkdtemp())
dataset = arguments.dataset or write_tiny_dataset(folder / "dataset")
if arguments.policy is None:
    write_small_policy(folder / "base", dataset)
base = arguments.policy or folder / "base"

accelerator = Accelerator()
teacher = load_teacher(arguments.teacher, device=accelerator.device)
alignment = AlignmentConfig(**LAYERS, hidden_width=teacher.card.width, target_width=teacher.card.width)
model = RocketForActionPrediction.from_pretrained(base, alignment=alignment).train()
processor, config = RocketProcessor.from_pretrained(base), model.config
rate = LeRobotDatasetMetadata("local/dataset", root=dataset).fps
chunk = {"action": [step / rate for step in range(config.chunk_size)]}
data = LeRobotDataset("local/dataset", root=dataset, delta_timestamps=chunk)
loader = torch.utils.data.DataLoader(data, BATCH_SIZE, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), LEARNING_RATE), loader)
for step, batch in enumerate(batch for _ in range(EPOCHS) for batch in loader):
    images = {camera: batch[f"observation.images.{camera}"] for camera in config.cameras}  # (B, 3, H, W) in [0, 1]
    robot = {"state": batch["observation.state"], "actions": batch["action"], "action_is_pad": batch["action_is_pad"]}
    features = teacher.features(scene_images(list(images.values()), teacher), LAYERS["teacher_layers"])
    windows = image_windows(processor, [image.shape[-2:] for image in images.values()])
    targets = Registration(config.policy_config.image_grid, windows)(features)  # on the grid of the image tokens
    output = model(**processor(images=images, task=batch["task"], **robot), targets=targets)
    accelerator.backward(output.loss)
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step:2}", *(f"{name} {loss.item():.3f}" for name, loss in output.losses.items()))
export_policy(accelerator.unwrap_model(model).for_inference(), processor, folder / "policy")
print(f"policy written to {folder / 'policy'}")
