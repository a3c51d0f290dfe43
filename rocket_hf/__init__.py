"""Alignment of vision-language-action policies with a 3D vision model (ROCKET), from LeRobot datasets to the Hub.

The public names are imported on first access, so that `import rocket_hf` and `rocket-hf --help` are fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .export.policy_folder import export_policy
    from .modeling.configuration_openvla import OpenVLAPolicyConfig
    from .modeling.configuration_pi0 import Pi0Config
    from .modeling.configuration_rocket import AlignmentConfig, RocketConfig
    from .modeling.configuration_rocket2 import Rocket2Config
    from .modeling.configuration_smolvla import SmolVLAConfig
    from .modeling.modeling_rocket import RocketForActionPrediction
    from .modeling.modeling_rocket2 import Rocket2ForActionPrediction
    from .modeling.processing_rocket import RocketProcessor
    from .teachers.load import load_teacher

MODULES = {
    "OpenVLAPolicyConfig": ".modeling.configuration_openvla",
    "Pi0Config": ".modeling.configuration_pi0",
    "SmolVLAConfig": ".modeling.configuration_smolvla",
    "AlignmentConfig": ".modeling.configuration_rocket",
    "RocketConfig": ".modeling.configuration_rocket",
    "Rocket2Config": ".modeling.configuration_rocket2",
    "Rocket2ForActionPrediction": ".modeling.modeling_rocket2",
    "RocketForActionPrediction": ".modeling.modeling_rocket",
    "RocketProcessor": ".modeling.processing_rocket",
    "export_policy": ".export.policy_folder",
    "load_teacher": ".teachers.load",
}
__all__ = [
    "AlignmentConfig",
    "OpenVLAPolicyConfig",
    "Pi0Config",
    "Rocket2Config",
    "Rocket2ForActionPrediction",
    "RocketConfig",
    "RocketForActionPrediction",
    "RocketProcessor",
    "SmolVLAConfig",
    "export_policy",
    "load_teacher",
]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(MODULES[name], __name__), name)
