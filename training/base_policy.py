"""The folder of the policy that a run starts from."""

from collections.abc import Sequence
from pathlib import Path

from rocket_hf.checkpoint_files import read_json_object
from rocket_hf.errors import UserError
from rocket_hf.hub import POLICY_FILES, resolve
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.strict_config import StrictConfig
from rocket_hf.policy_files import check_policy_files


def find_policy_folder(
    name: str, kind: type[StrictConfig] = RocketConfig, files: Sequence[str] = ("config.json", "processor_config.json")
) -> Path:
    """Return the local folder of a policy, downloaded if `name` is a Hub id; check that it is a policy of this kind."""
    folder = resolve(name, POLICY_FILES).folder
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{name} is not a policy: it has no {file}; create a policy with `rocket-hf convert`")
    if not any(path.is_file() for path in folder.glob("model*.safetensors")):
        raise UserError(f"the policy {name} has no weights (model.safetensors): download or export it again")
    check_policy_files(folder)
    model_type = read_json_object(folder / "config.json").get("model_type")
    if model_type != kind.model_type:
        raise UserError(
            f"{name} cannot be used here: its config.json describes a model of type {model_type!r}, expected "
            f"{kind.model_type!r}; convert public checkpoints with `rocket-hf convert`"
        )
    return folder
