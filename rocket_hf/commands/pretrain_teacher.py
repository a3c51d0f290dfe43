"""Trains a small 3D teacher on simulated pictures with depth and camera poses, and measures it on tasks held out.

    rocket-hf simulate metaworld --tasks easy --episodes 5 --depth --out rgbd
    rocket-hf pretrain-teacher rgbd --held-out "open the drawer" "close the door" --out my-teacher
    rocket-hf cache build you/robot-data --teacher my-teacher --out features

The same command and seed give the same weights on the same machine. `--teacher embedded` is one that was made so.
"""

import argparse
import json
import shlex
from pathlib import Path

from .arguments import positive

HELP = "train a small 3D teacher on simulated depth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="a folder of `rocket-hf simulate ... --depth`")
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="a new folder, for the teacher")
    parser.add_argument(
        "--held-out", required=True, nargs="+", metavar="TASK", help="tasks to measure on, not to train on"
    )
    parser.add_argument("--steps", type=positive, default=3000, help="of training (default: 3000)")
    parser.add_argument("--batch-size", type=positive, default=8, help="scenes a step (default: 8)")
    parser.add_argument("--every", type=positive, default=5, help="one frame of so many is read (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.export.export_files import staged
    from rocket_hf.sims.rgbd import RgbdFrames
    from rocket_hf.teachers.pretraining.folder import write_folder
    from rocket_hf.teachers.pretraining.make_teacher import make_teacher
    from rocket_hf.teachers.pretraining.pretrain import Settings
    from rocket_hf.teachers.pretraining.scenes import read_scenes

    with staged(arguments.out) as staging:
        frames = RgbdFrames(arguments.dataset)
        settings = Settings(steps=arguments.steps, batch_size=arguments.batch_size, seed=arguments.seed)
        scenes = read_scenes(frames, arguments.every)
        model, report = make_teacher(scenes, list(frames.cameras), arguments.held_out, settings)
        report["commands"] = [recording(arguments.dataset), command(arguments)]
        write_folder(staging, model, report)
    for line in summary(report):
        print(line)
    print(f"teacher     {arguments.out}, whose README.md tells the rest")
    return 0


def recording(dataset: Path) -> str:
    """The command that makes the dataset again."""
    from rocket_hf.sims.recording import FILE

    plan = json.loads((dataset / FILE).read_text(encoding="utf-8"))["plan"]
    words = ["rocket-hf", "simulate", plan["suite"], "--tasks", *plan["tasks"], "--episodes", plan["episodes"]]
    words += ["--image-size", plan["image_size"], "--seed", plan["first_seed"], "--depth", "--out", dataset.name]
    return shlex.join(map(str, words))


def command(arguments: argparse.Namespace) -> str:
    """That makes this teacher again."""
    words = ["rocket-hf", "pretrain-teacher", arguments.dataset.name, "--held-out", *arguments.held_out]
    for name in ("steps", "batch_size", "every", "seed"):
        words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return shlex.join([*words, "--out", arguments.out.name])


def summary(report: dict) -> list[str]:
    data, depth, camera = report["data"], report["depth"], report["camera"]
    lines = [f"data        {data['frames']:,} scenes to train on, {data['held_out_frames']:,} of tasks held out"]
    lines += [f"depth       {errors['mean']:.3f} relative error: {name}" for name, errors in depth.items()]
    meters, degrees = camera["translation_meters"], camera["rotation_degrees"]
    lines.append(f"cameras     {meters * 100:.1f} cm and {degrees:.1f} degrees off, by median")
    for layer, errors in report["layers"].items():
        lines.append(f"layer {layer:6s}{errors['untrained']:.3f} untrained -> {errors['trained']:.3f} trained")
    return lines
