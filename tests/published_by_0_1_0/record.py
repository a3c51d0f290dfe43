"""Record the two published policies in this folder: `vla` and `rocket2`.

Run this script with rocket_hf 0.1.0 at commit f4bec42, which is the version that the recordings stand for. It uses the
module names of that version, and it does not run with later ones:

    python record.py OUTPUT_FOLDER
"""

import sys
from pathlib import Path

import torch

import rocket_hf
from rocket_hf.hub_cards.facts import Provenance, Source
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import AlignmentConfig, RocketConfig
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.publish import publish_to_folder
from rocket_hf.publishing.goal_policy import publish_goal_policy_to_folder
from rocket_hf.tiny import character_tokenizer, tiny_statistics

PI0_SIZES = {
    "depth": 3, "heads": 4, "kv_heads": 1, "head_dim": 4, "width": 16, "mlp_width": 32, "expert_width": 8,
    "expert_mlp_width": 16, "vocab_size": 104, "vision_depth": 2, "vision_heads": 2, "vision_width": 12,
    "vision_mlp_width": 24, "image_size": 28, "patch_size": 7, "max_state_dim": 8, "max_action_dim": 8,
    "denoising_steps": 4,
}  # fmt: skip
ROCKET2_SIZES = {
    "image_size": (32, 48), "rgb_depth": 2, "rgb_width": 12, "rgb_heads": 2, "rgb_mlp_width": 24, "mask_depth": 2,
    "mask_width": 8, "mask_heads": 2, "mask_mlp_width": 16, "width": 16, "heads": 2, "view_tokens": 2,
    "spatial_layers": 2, "temporal_layers": 2, "window_steps": 3,
}  # fmt: skip


def random_model(model_class, config):
    """Make a model with fresh weights plus noise, so that no weight is zero and every part changes the actions."""
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def record_vla(folder: Path) -> None:
    """Publish a pi0 policy for a robot with two cameras and a gripper; its alignment head is dropped."""
    config = RocketConfig(
        policy_config=Pi0Config(variant="pi0", **PI0_SIZES),
        alignment=AlignmentConfig(student_layers=(1, 2, -1), teacher_layers=(2, 3, 4), hidden_width=8, target_width=8),
        cameras=["front", "wrist"],
        state_dim=6,
        action_dim=5,
        state_names=["base", "shoulder", "elbow", "wrist", "roll", "gripper"],
        action_names=["base", "shoulder", "elbow", "wrist", "gripper"],
        chunk_size=4,
    )
    statistics = tiny_statistics(config)
    statistics["action"]["mask"] = [True, True, True, True, False]  # the gripper is not normalised
    processor = RocketProcessor.for_config(config, character_tokenizer(), statistics)
    model = random_model(RocketForActionPrediction, config)
    provenance = Provenance(licence="apache-2.0", base_model=Source("example/tiny-pi0"))
    publish_to_folder(model, processor, folder, provenance, repo="example/vla", tag="v1")


def record_rocket2(folder: Path) -> None:
    """Publish a ROCKET-2 policy with three action factors; it keeps its heads `visibility` and `point`, not `box`."""
    config = Rocket2Config(
        action_space="factored",
        action_factors={"walk": 2, "turn": 9, "strafe": 3},
        rest_action=[0, 4, 0],
        **ROCKET2_SIZES,
    )
    model = random_model(Rocket2ForActionPrediction, config)
    provenance = Provenance(licence="mit", base_model=None)
    keep = ["visibility", "point"]
    publish_goal_policy_to_folder(model, folder, provenance, keep=keep, repo="example/rocket2", tag="v1")


def main() -> None:
    """Record both policies and make their files readable for everyone (safetensors writes them with mode 0600)."""
    if rocket_hf.__version__ != "0.1.0":
        raise SystemExit(f"this script records policies of rocket_hf 0.1.0, here is {rocket_hf.__version__}")
    output = Path(sys.argv[1])
    record_vla(output / "vla")
    record_rocket2(output / "rocket2")
    for path in output.glob("*/*"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
