"""Model card of a pretrained teacher. Every number in it comes from the teacher's report."""

FRONT_MATTER = """---
license: apache-2.0
library_name: rocket-hf
tags:
- vggt
- depth-estimation
- camera-pose
- robotics
---
"""


def render_card(report: dict) -> str:
    sections = (FRONT_MATTER, introduction(report), training(report), depth(report), cameras(report), layers(report))
    return "\n".join(sections)


def introduction(report: dict) -> str:
    millions, frames = report["training"]["parameters"] / 1e6, report["training"]["frames"]
    return f"""# A small VGGT for simulated robots

A 3D teacher with {millions:.1f} million parameters: VGGT's aggregator (an image encoder, followed by attention within
and across the cameras of a scene), trained to predict the depth of every pixel and the pose of every camera from up to
{frames} images. Its purpose is to try out alignment without a download. It was trained only on simulated table tops.

    from rocket_hf.teachers.load import load_teacher

    teacher = load_teacher(FOLDER)  # "embedded" loads the teacher inside the package

The weights are licensed under Apache-2.0. They were trained from scratch on rendered images.
"""


def training(report: dict) -> str:
    data, training = report["data"], report["training"]
    commands = "\n".join(f"    {command}" for command in report["commands"])
    return f"""## Training

{commands}

- Data: {data["frames"]:,} scenes of {len(data["tasks"])} tasks, recorded with the cameras {join(data["cameras"])}.
  Held out: {data["held_out_frames"]:,} scenes of {len(data["held_out_tasks"])} other tasks.
- Training: {training["steps"]:,} steps with {training["batch_size"]} scenes each, seed {training["seed"]}, \
{training["seconds"] / 60:.0f} minutes on a CPU (threads: {training["threads"]}).
- Losses: log-depth and its gradients, translation, rotation and angle of view.

Tasks for training: {"; ".join(data["tasks"])}.

Tasks for testing: {"; ".join(data["held_out_tasks"])}.
"""


def depth(report: dict) -> str:
    columns = ["mean", *report["data"]["cameras"]]
    rows = [[name, *(f"{errors[column]:.3f}" for column in columns)] for name, errors in report["depth"].items()]
    return f"""## Depth on held-out tasks

Mean absolute relative error, |d - d*| / d*. The constants are those with the least error on the training scenes.

{table(["", *columns], rows)}
"""


def cameras(report: dict) -> str:
    errors = report["camera"]
    if not errors:
        return "The scenes have one camera, so no poses between cameras were measured.\n"
    error, baseline = (f"{errors[name] * 100:.1f} cm" for name in ("translation_meters", "mean_pose_meters"))
    return f"""## Camera poses on held-out tasks

The median error of the second camera's pose is {error} and {errors["rotation_degrees"]:.1f} degrees. Predicting its
mean position in training would give a median error of {baseline}.
"""


def layers(report: dict) -> str:
    rows = [[layer, f"{each['untrained']:.3f}", f"{each['trained']:.3f}"] for layer, each in report["layers"].items()]
    return f"""## Depth in each layer

Relative depth error of a linear map (ridge regression) from a layer's patches to their depth, on held-out tasks, before
and after training.

{table(["layer", "untrained", "trained"], rows)}
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
