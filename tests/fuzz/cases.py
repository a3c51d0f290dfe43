"""Commands of the fuzz test, with valid inputs and arguments, and their mutations.

A case depends only on its generator of random numbers, so that it can be repeated alone.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from .file_mutations import mutate_file

TINY = "--set run.steps=1 --set run.batch_size=2 --set data.validation=0 --set data.workers=0"
TRAIN = f"--recipe tiny --policy policy --dataset dataset --teacher teacher --out out {TINY}"
INPUTS = "policy dataset teacher"
LICENSE = "--license apache-2.0 --base lerobot/smolvla_base"
RUN = "run policy dataset teacher"


@dataclass(frozen=True)
class Command:
    """A valid command. Its words and inputs are separated by spaces; `out` is its output."""

    words: str
    inputs: str  # files and folders that it reads; those at the start are mutated more often
    results: str = ""  # files that exist after success
    writes: str = ""  # inputs that it may change
    is_atomic: bool = False  # whether the output exists only if the command succeeded
    weight: float = 1.0

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.words)


COMMANDS = [
    Command(f"train {TRAIN}", INPUTS, "out/policy/model.safetensors", weight=2),
    Command(f"train {TRAIN} --cache cache", f"cache {INPUTS}", "out/policy/model.safetensors"),
    Command("train --recipe recipe.yaml --out out", f"recipe.yaml {INPUTS}", "out/policy/model.safetensors", weight=2),
    Command(f"train {TRAIN} --dry-run", INPUTS),
    Command(f"train {TRAIN.replace('dataset dataset', 'dataset videos')}", f"videos {INPUTS}",
            "out/policy/model.safetensors"),
    Command("train --recipe run/recipe.yaml --out run --resume --set run.steps=3", RUN, "run/policy/model.safetensors",
            writes="run", weight=2),
    Command("train --recipe run2/recipe.yaml --out run2 --resume --set run.steps=2", "run2 rooms",
            "run2/policy/model.safetensors", writes="run2"),
    Command("adapt pi0 --dataset dataset --out out --set lora.rank=2 " + TINY, "pi0 dataset",
            "out/policy/model.safetensors"),
    Command("cache build dataset --teacher teacher --out out --layers 2,4 --device cpu --workers 0", "dataset teacher",
            "out/manifest.json", weight=2),
    Command("cache build videos --teacher teacher --out out --layers 2,4 --storage projected --width 4 --workers 0",
            "videos teacher", "out/manifest.json"),
    Command("cache build dataset --teacher teacher --out cache --layers 2,3,4 --device cpu --workers 0",
            "cache dataset teacher", "cache/manifest.json", writes="cache"),
    Command("cache info cache", "cache"),
    Command("cache verify cache", "cache"),
    Command("eval policy --dataset dataset --episodes 1 --out out", "policy dataset", "out/open_loop.json", weight=2),
    Command("eval run --dataset dataset --out out", "run dataset", "out/open_loop.json"),
    Command("eval published2 --env vizdoom --episodes 1 --max-steps 2 --workers 1 --refresh 1 --out out", "published2",
            "out/evaluation.json", weight=0.2),
    Command("verify published", "published", weight=2),
    Command("verify published2", "published2", weight=1.5),
    Command(f"publish run --to out {LICENSE}", RUN, "out/model.safetensors", is_atomic=True, weight=2),
    Command(f"publish run --to out --evaluation report --tag v1 --rate 10 {LICENSE}", f"report {RUN}",
            "out/model.safetensors", is_atomic=True),
    Command(f"publish adapted --to out {LICENSE}", "adapted policy dataset", "out/model.safetensors", is_atomic=True),
    Command("publish run2 --to out --license mit --keep visibility", "run2 rooms", "out/model.safetensors",
            is_atomic=True),
    Command("convert lerobot-pi0 lerobot out --tokenizer tokenizer --heads vision=2", "lerobot tokenizer",
            "out/model.safetensors", is_atomic=True, weight=1.5),
    Command("convert openvla-oft oft out --heads dino=1 --heads siglip=1", "oft", "out/model.safetensors",
            is_atomic=True),
    Command("convert rocket2 public-rocket2 out --heads rgb=1 --heads mask=1", "public-rocket2",
            "out/model.safetensors", is_atomic=True),
    Command("convert to-lerobot policy out", "policy", "out/model.safetensors", is_atomic=True),
    Command("layers --student-depth 8 --teacher-depth 6 --strategy uniform --pairs 3 --out out", "", "out/recipe.yaml"),
    Command("layers policy dataset --teacher teacher --strategy cka --pairs 2 --samples 4 --batch-size 2 --workers 0 "
            "--out out",
            INPUTS, "out/recipe.yaml"),
    Command("analyze gradients run --samples 4 --batch-size 2 --out out", RUN, "out/gradients.json"),
    Command("analyze representations run --checkpoints all --samples 4 --batch-size 2 --out out", RUN),
    Command("analyze depth small --dataset rgbd --teacher embedded --samples 8 --out out", "rgbd small"),
    Command("pretrain-teacher rgbd --held-out 'move the hand to the target' --steps 1 --batch-size 2 --out out",
            "rgbd", is_atomic=True),
    Command("pretrain-encoder rooms --recipe run2/recipe.yaml --steps 1 --out out", "rooms run2", is_atomic=True),
    Command("simulate metaworld --tasks handle-press-v3 reach-v3 --episodes 2 --image-size 48 --depth --workers 1 "
            "--out rgbd", "rgbd", writes="rgbd"),
    Command("simulate vizdoom --rooms 2 --views 4 --workers 1 --out rooms", "rooms", writes="rooms"),
    Command("ablate --data out --steps 1 --seeds 1 --out out", ""),
]  # fmt: skip

NUMBERS = [
    "0",
    "-1",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "",
    "ten",
    "0x10",
    "٣",
    "1_000",
    " 2",
    "2**3",
    "1,2",
    "--",
    "True",
]
HUGE = ["2147483648", "99999999999999999999", "1e18"]
PATHS = ["nowhere", "", "~nouser/x", "~", "/proc/nothing", ".", "..", "a/b/c", "owner/name", "owner/name@v1",
         "owner/name@", "@", "x" * 300, "sp ace", "ü\u202e", "new\nline", "\x1b[31m", "\udcff", "#3", "--out",
         "dataset", "policy", "recipe.yaml", "policy/config.json"]  # fmt: skip
# With huge values of these, a correct command would run for years, and with their default values for minutes.
AMOUNTS = {"--steps", "--episodes", "--rooms", "--views", "--max-steps", "--workers", "--rollouts", "--depth-episodes"}
NUMBER_OPTIONS = AMOUNTS | {
    "--seed", "--seeds", "--samples", "--batch-size", "--width", "--pairs", "--student-depth", "--teacher-depth",
    "--image-size", "--rate", "--parallel", "--execute", "--temperature", "--every", "--held-out-share", "--layers",
    "--refresh", "--resolution", "--grid", "--student-layers", "--windows",
}  # fmt: skip
MORE_OPTIONS = {
    "eval": ["--execute", "--seed", "--parallel", "--cameras", "--device", "--against", "--videos", "--temperature"],
    "cache": ["--resolution", "--grid", "--storage", "--dtype", "--device", "--cameras", "--batch-size", "--layers"],
    "publish": ["--tag", "--shard", "--rate", "--keep", "--dtype", "--success", "--evaluation", "--conventions",
                "--repo", "--base", "--license", "--dataset"],
    "convert": ["--tokenizer", "--statistics", "--base", "--heads", "--vlm", "--dtype"],
    "layers": ["--student-layers", "--teacher-layers", "--windows", "--change", "--resolution", "--dtype",
               "--strategy"],
    "analyze": ["--held-out-tasks", "--held-out-share", "--head", "--parameters", "--checkpoints", "--samples"],
    "simulate": ["--seed", "--tasks", "--image-size", "--views", "--workers"],
    "train": ["--set", "--recipe", "--cache", "--dataset", "--config_file", "--num_processes"],
    "adapt": ["--set", "--recipe", "--out"],
    "verify": ["--revision"],
    "pretrain-teacher": ["--every", "--seed", "--held-out"],
    "pretrain-encoder": ["--seed", "--recipe"],
    "ablate": ["--recipes", "--workers", "--rollouts", "--episodes", "--depth-episodes"],
}  # fmt: skip
SETTINGS = [
    "optimizer.lr", "optimizer.betas", "optimizer.weight_decay", "optimizer.clip_norm", "schedule.kind",
    "schedule.warmup", "run.seed", "run.save_every", "run.keep", "run.trackers", "run.ema", "run.device_batch_size",
    "run.validation_samples", "data.validation", "data.augmentation", "data.augmentation.crop_area", "data.datasets",
    "data.datasets.0.id", "data.datasets.0.cameras", "data.datasets.0.weight", "data.datasets.0.episodes",
    "alignment", "alignment.student_layers", "alignment.nested_widths", "alignment.hidden_width", "alignment.pairs",
    "alignment.loss", "teacher.dtype", "teacher.resolution", "teacher.caches", "robot.cameras", "robot.state_dim",
    "robot.chunk_size", "robot.action_normalization", "parts.vision", "parts.heads", "lora.rank", "lora.alpha",
    "policy", "like", "about", "unknown.key", "run", "", "=", "run.steps.x",
]  # fmt: skip
SETTING_VALUES = ["0", "-1", "nan", "1e400", "[]", "{}", "null", "text", "[1, 2", "true", "[-1, 99]", "1.5", "ü", "",
                  "'", "{a: 1}", "*x", "&x [*x]", "!!python/name:os.system", "[[1]]", "2026-01-01"]  # fmt: skip


@dataclass
class Case:
    """A command whose inputs or arguments are mutated."""

    command: Command
    words: list[str]
    changes: list[str] = field(default_factory=list)
    largest_file: int | None = None  # in bytes


def draw_command(draw: Random) -> Command:
    return draw.choices(COMMANDS, [command.weight for command in COMMANDS])[0]


def mutate(command: Command, folder: Path, draw: Random) -> Case:
    """Mutate the arguments of a command, or its inputs in `folder`."""
    case = Case(command, command.arguments)
    inputs = command.inputs.split()
    if draw.random() < 0.06:
        case.largest_file = draw.choice([20_000, 50_000, 200_000])  # more than what it prints
        case.changes.append(f"no file may be larger than {case.largest_file} bytes, as on a full disk")
    elif inputs and draw.random() < 0.65:
        for _ in range(draw.choice([1, 1, 1, 2])):
            mutate_input(case, folder, inputs, draw)
    else:
        mutate_words(case, draw)
    return case


def mutate_input(case: Case, folder: Path, inputs: list[str], draw: Random) -> None:
    name = inputs[0] if draw.random() < 0.6 else draw.choice(inputs)
    root = folder / name
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    mutated = [change.partition(": ")[0] for change in case.changes]
    files = [
        path for path in files if path.suffix not in (".py", ".png") and relative_name(path, folder) not in mutated
    ]
    files = [path for path in files if path.is_file() and not path.is_symlink()]
    if files:
        suffix = draw.choice(sorted({path.suffix for path in files}))  # so that no kind of file is rare
        path = draw.choice([path for path in files if path.suffix == suffix])
        case.changes.append(f"{relative_name(path, folder)}: {mutate_file(path, draw)}")


def relative_name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def mutate_words(case: Case, draw: Random) -> None:
    name, words = case.words[0], case.words
    options = [
        number for number, word in enumerate(words) if word.startswith("--") and word not in {"--data", *AMOUNTS}
    ]
    action = draw.choice(["value", "value", "value", "more", "more", "more", "remove", "set"])
    if action == "set" and name not in ("train", "adapt"):
        action = "more"
    if action == "set":
        setting = f"{draw.choice(SETTINGS)}={draw.choice(SETTING_VALUES)}"
        words += ["--set", setting]
        case.changes.append(f"--set {setting!r}")
    elif action == "more" and name in MORE_OPTIONS:
        option = draw.choice([*MORE_OPTIONS[name], "--unknown"])
        words += [option, value_for(option, draw)]
        case.changes.append(f"{option} {words[-1]!r:.60}")
    elif action == "remove" and options:
        number = draw.choice(options)
        case.changes.append(f"without {' '.join(words[number : number + 2])}")
        del words[number : number + 2]
    else:
        positions = [number for number in range(1, len(words)) if not words[number].startswith("--")]
        number = draw.choice(positions)
        option = words[number - 1] if words[number - 1].startswith("--") else ""
        case.changes.append(f"{words[number]} -> {(value := value_for(option, draw))!r:.60}")
        words[number] = value


def value_for(option: str, draw: Random) -> str:
    if option == "--set":
        return f"{draw.choice(SETTINGS)}={draw.choice(SETTING_VALUES)}"
    if option in AMOUNTS:
        return draw.choice([number for number in NUMBERS if number != "1_000"])
    if option in NUMBER_OPTIONS:
        return draw.choice(NUMBERS + HUGE)
    return draw.choice(PATHS + NUMBERS)
