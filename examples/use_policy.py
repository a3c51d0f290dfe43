"""Load a published policy and predict a chunk of actions for one observation. Needs transformers, not this package.

    python examples/use_policy.py --policy you/your-robot --revision v1
    python examples/use_policy.py       # builds an untrained policy first, to run without a download

The images are random here; pass what your robot's cameras return: PIL images, arrays or tensors, of any size.
"""

import argparse
import tempfile

import torch
from transformers import AutoModel, AutoProcessor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", help="folder or Hub id of a published policy (default: build an untrained one)")
    parser.add_argument("--revision", help="tag or commit of the Hub repository, which pins code and weights")
    parser.add_argument("--task", default="open the drawer", help="instruction for the robot (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = arguments.policy or build_policy(folder)
        policy = AutoModel.from_pretrained(source, revision=arguments.revision, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(source, revision=arguments.revision, trust_remote_code=True)

    config = policy.config
    images = {camera: torch.randint(0, 256, (3, 480, 640), dtype=torch.uint8) for camera in config.cameras}
    state = torch.zeros(config.state_dim)  # in robot units
    inputs = processor(images=images, task=arguments.task, state=state)

    generator = torch.Generator().manual_seed(0)  # makes the noise of flow matching, and so the actions, repeatable
    chunk = processor.unnormalize_actions(policy.predict_action_chunk(**inputs, generator=generator))
    print(f"{policy.num_parameters():,} parameters, cameras {', '.join(config.cameras)}")
    print(f"actions of the next {chunk.shape[1]} steps, in robot units:")
    for action in chunk[0]:
        print("  " + "  ".join(f"{value:+.3f}" for value in action.tolist()))


def build_policy(folder: str) -> str:
    """Write a small untrained pi0 for a generated dataset."""
    from rocket_hf.study.small_policy import write_small_policy
    from rocket_hf.tiny_dataset import write_tiny_dataset

    write_small_policy(f"{folder}/policy", write_tiny_dataset(f"{folder}/dataset"))
    return f"{folder}/policy"


if __name__ == "__main__":
    main()
