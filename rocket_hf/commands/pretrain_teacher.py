"""Train a small 3D teacher on simulated images with depth and camera poses, and evaluate it on held-out tasks.

    rocket-hf simulate metaworld --tasks easy --episodes 5 --depth --out rgbd
    rocket-hf pretrain-teacher rgbd --held-out "open the drawer" "close the door" --out my-teacher
    rocket-hf cache build you/robot-data --teacher my-teacher --out features

The same command and seed give the same weights on the same machine. The teacher `embedded` was trained this way. For a
policy whose camera moves, record `"metaworld:camera=random(20,10,0.1)"`: each scene keeps the pose of its cameras.
"""

import argparse
import shlex
from pathlib import Path

from .arguments import positive_integer

HELP = "train a small 3D teacher on simulated depth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dataset", metavar="DATASET", type=Path, help="folder recorded with `rocket-hf simulate ... --depth`"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="new folder for the teacher")
    parser.add_argument(
        "--held-out", required=True, nargs="+", metavar="TASK", help="tasks for testing, which are not trained on"
    )
    parser.add_argument("--steps", type=positive_integer, default=3000, help="number of training steps (default: 3000)")
    parser.add_argument("--batch-size", type=positive_integer, default=8, help="scenes per step (default: 8)")
    parser.add_argument(
        "--every", type=positive_integer, default=5, help="interval between frames that are used (default: 5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and batches (default: 0)")


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.folder_lock import staged_folder
    from rocket_hf.rgbd_dataset import RgbdFrames
    from rocket_hf.teachers.pretraining.folder import write_folder
    from rocket_hf.teachers.pretraining.make_teacher import make_teacher
    from rocket_hf.teachers.pretraining.pretrain import PretrainingSettings
    from rocket_hf.teachers.pretraining.scenes import read_scenes

    with staged_folder(arguments.out) as staging:
        frames = RgbdFrames(arguments.dataset)
        commands = [simulate_command(arguments.dataset), pretrain_command(arguments)]
        settings = PretrainingSettings(steps=arguments.steps, batch_size=arguments.batch_size, seed=arguments.seed)
        scenes = read_scenes(frames, arguments.every)
        model, report = make_teacher(scenes, list(frames.cameras), arguments.held_out, settings)
        write_folder(staging, model, report | {"commands": commands})
    for line in summarize_report(report):
        print(line)
    print(f"teacher     {arguments.out} (model card: README.md)")
    print(f"next        rocket-hf cache build DATASET --teacher {arguments.out} --out features")
    return 0


def simulate_command(dataset: Path) -> str:
    """Return the command that records the dataset."""
    from rocket_hf.sims.recording import read_recording

    plan = read_recording(dataset)["plan"]
    words = ["rocket-hf", "simulate", plan["suite"], "--tasks", *plan["tasks"], "--episodes", plan["episodes"]]
    words += ["--image-size", plan["image_size"], "--seed", plan["first_seed"], "--depth", "--out", dataset.name]
    return shlex.join(map(str, words))


def pretrain_command(arguments: argparse.Namespace) -> str:
    """Return the command that trains this teacher."""
    words = ["rocket-hf", "pretrain-teacher", arguments.dataset.name, "--held-out", *arguments.held_out]
    for name in ("steps", "batch_size", "every", "seed"):
        words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return shlex.join([*words, "--out", arguments.out.name])


def summarize_report(report: dict) -> list[str]:
    data, depth = report["data"], report["depth"]
    lines = [
        f"data        {data['frames']:,} scenes for training, {data['held_out_frames']:,} scenes of held-out tasks"
    ]
    lines += [f"depth       {errors['mean']:.3f} relative error: {name}" for name, errors in depth.items()]
    if camera := report["camera"]:
        meters, degrees = camera["translation_meters"], camera["rotation_degrees"]
        lines.append(f"cameras     {meters * 100:.1f} cm and {degrees:.1f} degrees median error")
    for layer, errors in report["layers"].items():
        lines.append(f"layer {layer:6s}{errors['untrained']:.3f} untrained -> {errors['trained']:.3f} trained")
    return lines
