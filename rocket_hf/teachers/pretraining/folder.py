"""Output folder of pretraining: weights in the layout of the public VGGT, which `load_teacher` reads, and a report."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rocket_hf.checkpoint_files import read_json

from ..vggt import VggtConfig
from .card import render_card
from .heads import GeometryModel

STORED_DTYPE = torch.float16  # more precise than bfloat16, and no weight comes near its limits


def write_folder(folder: Path, model: GeometryModel, report: dict) -> None:
    tensors = {name: tensor.to(STORED_DTYPE).contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = dataclasses.asdict(model.config)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render_card(report), encoding="utf-8")


def read_geometry_model(folder: Path) -> GeometryModel:
    """Load the teacher with the heads that it was trained with, to inspect its predictions."""
    with torch.device("meta"):
        model = GeometryModel(VggtConfig.from_dict(read_json(folder / "config.json")))
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def round_as_stored(model: GeometryModel) -> GeometryModel:
    """Round the weights in place to the dtype of the folder, so that the report describes the stored teacher."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(STORED_DTYPE))
    return model
