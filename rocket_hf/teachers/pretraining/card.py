"""The model card of a pre-trained teacher: every number in it is one of its report."""

FRONT = """---
license: apache-2.0
library_name: rocket-hf
tags:
- vggt
- depth-estimation
- camera-pose
- robotics
---
"""


def card(report: dict) -> str:
    parts = [FRONT, introduction(report), made(report), depth(report), cameras(report), layers(report)]
    return "\n".join(parts)


def introduction(report: dict) -> str:
    millions, frames = report["training"]["parameters"] / 1e6, report["training"]["frames"]
    return f"""# A small VGGT for simulated robots

A 3D teacher of {millions:.1f} million parameters: VGGT's aggregator (an image encoder, then attention within and
across the cameras of a scene), trained to predict the depth of every pixel and the pose of every camera from up to
{frames} pictures. It exists so that alignment can be tried without a download; it knows simulated table tops alone.

    from rocket_hf.teachers.load import load_teacher

    teacher = load_teacher(FOLDER)  # "embedded" is the one inside the package

The weights are ours, under Apache-2.0, trained from nothing on rendered pictures.
"""


def made(report: dict) -> str:
    data, training = report["data"], report["training"]
    commands = "\n".join(f"    {command}" for command in report["commands"])
    return f"""## How it was made

{commands}

- Data: {data["frames"]:,} scenes of {len(data["tasks"])} tasks, seen by {listed(data["cameras"])}. Held out:
  {data["held_out_frames"]:,} scenes of {len(data["held_out_tasks"])} other tasks.
- Training: {training["steps"]:,} steps of {training["batch_size"]} scenes, seed {training["seed"]}, \
{training["seconds"] / 60:.0f} minutes on a CPU (threads: {training["threads"]}).
- Losses: log-depth and its gradients, translation, rotation and angle of view.

Trained on: {"; ".join(data["tasks"])}.

Tested on: {"; ".join(data["held_out_tasks"])}.
"""


def depth(report: dict) -> str:
    columns = ["mean", *report["data"]["cameras"]]
    rows = [[name, *(f"{errors[column]:.3f}" for column in columns)] for name, errors in report["depth"].items()]
    return f"""## Depth on unseen tasks

Mean absolute relative error, |d - d*| / d*. The constants are the best that there are for the training scenes.

{table(["", *columns], rows)}
"""


def cameras(report: dict) -> str:
    errors = report["camera"]
    found, usual = (f"{errors[name] * 100:.1f} cm" for name in ("translation_meters", "usual_meters"))
    return f"""## Cameras on unseen tasks

The second camera is placed {found} and {errors["rotation_degrees"]:.1f} degrees off, by median. Where it stands on
average in training would be {usual} off.
"""


def layers(report: dict) -> str:
    rows = [[layer, f"{each['untrained']:.3f}", f"{each['trained']:.3f}"] for layer, each in report["layers"].items()]
    return f"""## Depth in each layer

The relative error of depth that a linear map (ridge regression) reads off a layer's patches, on unseen tasks, before
training and after.

{table(["layer", "untrained", "trained"], rows)}
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
