"""Tests of docs/: the site builds strictly, its code runs, and its commands, options, recipe keys and files exist."""

import argparse
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from rocket_hf.commands import COMMANDS, LAUNCHING_COMMANDS
from rocket_hf.hub_cards.facts import Provenance, Source
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.publishing.package import PolicyPackage, write_to_folder
from rocket_hf.study.small_policy import write_small_policy
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.arguments import add_training_arguments
from rocket_hf.training.recipe import Rocket2Recipe, VLARecipe
from rocket_hf.training.recipe_files import read_recipe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
TEXTS = PAGES | {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
SOURCE_FOLDERS = ("modeling", "rocket_hf", "training", "hub_cards", "lerobot_policy_rocket")

# Pages whose Python blocks run, in this order. Those of own-robot.md run in tests/test_own_robot_guide.py.
EXECUTED_PAGES = ("getting-started.md", "publishing.md", "teachers-and-cache.md", "rocket2.md")
OTHER_PROGRAMS = ("lerobot-", "pip ", "apt-get ", "make", "python ")
OPTIONS_OF_OTHER_PROGRAMS = {"--rename_map", "--no-deps"}
FEW_STEPS = " ".join(
    f"--set {change}"
    for change in ("run.steps=4", "rocket2.warmup_steps=2", "run.save_every=2", "run.validate_every=2",
                   "run.log_every=1", "run.validation_samples=4", "data.validation=0.34")
)  # fmt: skip


def blocks(text: str, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language in languages]


def shell_lines(text: str) -> Iterator[str]:
    """Yield the commands of all shell blocks, without comments and continued lines joined."""
    for block in blocks(text, "sh"):
        yield from (line.partition("#")[0].strip() for line in block.replace("\\\n", " ").splitlines())
    for block in blocks(text, "console"):
        yield from (line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ "))


def code_spans(text: str) -> list[str]:
    """Return the inline code of a page, with line breaks replaced by spaces."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def generator() -> Any:
    """Import docs/generate_recipes.py, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("generate_recipes", DOCS / "generate_recipes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Site


def navigation(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            yield from navigation(value) if isinstance(value, list) else [value]


def test_navigation_contains_every_page_once():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = list(navigation(yaml.safe_load(config)["nav"]))
    assert sorted(pages) == sorted(PAGES)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. The build fails on broken links, unknown anchors and unknown names of the API page."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_site_builds_strictly_with_all_pages_and_images(site):
    assert {path.stem for path in site.glob("*.html")} >= {Path(name).stem for name in PAGES}
    assert {path.name for path in (site / "images").iterdir()} == {path.name for path in (DOCS / "images").iterdir()}
    assert not list(site.rglob("*.py"))


def test_pages_of_the_site_request_nothing_from_other_servers(site):
    for path in site.glob("*.html"):
        requests = re.findall(
            r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"?(https?://[^\"\s>]+)", path.read_text()
        )
        assert not requests, f"{path.name} requests {requests}"


def test_api_page_documents_every_public_name_of_the_package(site):
    import rocket_hf

    page = (site / "api.html").read_text()
    for name in rocket_hf.__all__:
        assert re.search(rf'id="rocket_hf\.[\w.]+\.{name}"', page), f"docs/api.md lacks {name}"


def heading_anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_texts_outside_the_site_resolve(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        assert (ROOT / path).exists(), f"{name} links to {path}, which does not exist"
        if anchor:
            assert anchor in heading_anchors((ROOT / path).read_text(encoding="utf-8")), f"{name}: no anchor {link}"


# Code


def python_blocks() -> list[Any]:
    return [
        pytest.param(block, id=f"{name}-{number}")
        for name, text in PAGES.items()
        for number, block in enumerate(blocks(text, "python"))
    ]


@pytest.mark.parametrize("block", python_blocks())
def test_python_block_compiles(block):
    compile(block, "block", "exec")


@pytest.fixture(scope="module")
def published_folder(tmp_path_factory) -> Path:
    """A folder with an untrained policy at `runs/demo/published`, as the demo publishes its trained one."""
    folder = tmp_path_factory.mktemp("workspace")
    robot = {"cameras": {"corner2": (64, 64), "gripperPOV": (64, 64)}, "state_dim": 4, "action_dim": 4}
    write_small_policy(folder / "base", write_tiny_dataset(folder / "dataset", **robot, tasks=["open the drawer"]))
    model = RocketForActionPrediction.from_pretrained(folder / "base")
    processor = RocketProcessor.from_pretrained(folder / "base")
    (folder / "runs" / "demo").mkdir(parents=True)
    provenance = Provenance(license="apache-2.0", base_model=Source("you/base"))
    write_to_folder(PolicyPackage(model, processor, provenance), folder / "runs" / "demo" / "published")
    return folder


def test_python_blocks_of_the_guides_run_in_order(published_folder):
    assert {name for name, text in PAGES.items() if blocks(text, "python")} == {*EXECUTED_PAGES, "own-robot.md"}
    pages = ["\n".join(blocks(PAGES[name], "python")) for name in EXECUTED_PAGES]
    code = "\n".join(f"exec({page!r}, {{}})" for page in pages)
    environment = os.environ | {"HF_HOME": str(published_folder / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=published_folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (published_folder / "published-again" / "self_test.safetensors").is_file()


@pytest.mark.slow
def test_commands_of_the_rocket2_guide_run_one_after_another(tmp_path):
    """Run the commands as they are written, with smaller numbers."""
    smaller = {
        "simulate": ("--rooms 300", "--rooms 3 --views 6 --workers 1"),
        "pretrain-encoder": ("--out encoder", "--out encoder --steps 10"),
        "launch": ("--dataset rooms", f"--dataset rooms --out runs/rocket2 {FEW_STEPS}"),
        "eval": ("--episodes 200", "--episodes 2 --refresh 30 --max-steps 4 --workers 0"),
        "publish": ("--repo you/name", "--to published"),
    }
    programs = {"rocket-hf": ["-m", "rocket_hf.commands"], "accelerate": [str(ROOT / "training" / "train.py")]}
    lines = [line.partition("#")[0].strip() for line in blocks(PAGES["rocket2.md"], "sh")[0].strip().splitlines()]
    assert [line.split()[1] for line in lines] == list(smaller)
    for line in lines:
        long, short = smaller[line.split()[1]]
        assert long in line
        program, *words = line.replace(long, short).replace("launch training/train.py ", "").split()
        done = subprocess.run(
            [sys.executable, *programs[program], *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "published" / "self_test.safetensors").is_file()


@pytest.mark.parametrize("name", ["getting-started.md", "results.md"])
def test_outputs_of_the_guides_equal_those_of_the_readme(name):
    """The outputs in the README are compared with those of the commands."""
    tested = [block.partition("\n")[2] for block in blocks(TEXTS["README.md"], "console")]
    outputs = [block.partition("\n")[2] for block in blocks(PAGES[name], "console")]
    assert outputs and all(output in tested for output in outputs)


# Commands


def command_parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"rocket-hf {name}", exit_on_error=False)
    importlib.import_module(f"rocket_hf.commands.{name.replace('-', '_')}").add_arguments(parser)
    return parser


def training_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("training/train.py", exit_on_error=False)
    add_training_arguments(parser)
    return parser


def parser_options(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a parser and of its subcommands, without those that are hidden because they are retired."""
    actions = parser._option_string_actions
    options = {option for option, action in actions.items() if action.help != argparse.SUPPRESS}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options |= {option for inner in action.choices.values() for option in parser_options(inner)}
    return options


LAUNCHER_OPTIONS = parser_options(launch_command_parser())
OPTIONS = {name: parser_options(command_parser(name)) for name in COMMANDS} | {
    "training/train.py": parser_options(training_parser())
}


def options_of(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def check_rocket_hf_options(words: list[str], place: str) -> None:
    """Check the command and the options of a call of rocket-hf."""
    command, *rest = words
    assert command in COMMANDS, f"{place}: rocket-hf has no command {command!r}"
    known = OPTIONS[command] | (LAUNCHER_OPTIONS if command in LAUNCHING_COMMANDS else set())
    for option in options_of(rest):
        assert option in known, f"{place}: rocket-hf {command} has no option {option}"


def check_launch_options(words: list[str], place: str) -> None:
    """Check the options of `accelerate launch`, which precede the program, and those of the program."""
    flags, _, rest = " ".join(words).partition("training/train.py")
    for option in options_of(flags.split()):
        assert option in LAUNCHER_OPTIONS, f"{place}: accelerate launch has no option {option}"
    for option in options_of(rest.split()):
        assert option in OPTIONS["training/train.py"], f"{place}: training/train.py has no option {option}"


def test_command_page_receives_the_help_of_every_command_and_option(site):
    page = (site / "commands.html").read_text()
    for name in COMMANDS:
        assert f'id="rocket-hf-{name}"' in page
        for option in parser_options(command_parser(name)):
            assert option in page, f"docs/commands.md lacks {option} of {name}"


@pytest.mark.parametrize("name", TEXTS)
def test_shell_commands_have_existing_programs_and_options(name):
    for line in shell_lines(TEXTS[name]):
        line = re.sub(r"^([A-Z_]+=\S* )+", "", line)  # environment variables
        words = shlex.split(line)
        if words[:2] == ["accelerate", "launch"]:
            if "training/train.py" in words:
                check_launch_options(words[2:], name)
        elif words[:1] == ["rocket-hf"]:
            check_rocket_hf_options(words[1:], name)
        elif words:
            assert line.startswith(OTHER_PROGRAMS), f"{name}: unknown program in {line!r}"


@pytest.mark.parametrize("name", TEXTS)
def test_shell_commands_can_be_parsed(name):
    for line in shell_lines(TEXTS[name]):
        words = shlex.split(line)
        if words[:1] == ["rocket-hf"]:
            _, unknown = command_parser(words[1]).parse_known_args(words[2:])
            assert not unknown or words[1] in LAUNCHING_COMMANDS, f"{name}: {line!r} has unknown {unknown}"


@pytest.mark.parametrize("name", TEXTS)
def test_inline_commands_and_options_exist(name):
    every_option = set().union(*OPTIONS.values(), LAUNCHER_OPTIONS, OPTIONS_OF_OTHER_PROGRAMS)
    for span in code_spans(TEXTS[name]):
        words = span.split()
        if words[0] == "rocket-hf" and len(words) > 1 and words[1] not in ("COMMAND", "..."):
            check_rocket_hf_options(words[1:], name)
        elif words[0].startswith("--") and "." not in words[0].partition("=")[0]:  # lerobot's options have dots
            assert words[0].partition("=")[0] in every_option, f"{name}: no command has the option {words[0]}"


def test_make_targets_in_the_texts_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for name, text in TEXTS.items():
        for span in code_spans(text):
            if span.startswith("make ") and (target := span.split()[1]).islower():
                assert target in targets, f"{name}: there is no `make {target}`"


# Recipes


def all_recipe_keys(recipe_class: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a recipe class, N for list entries."""
    hints = get_type_hints(recipe_class)
    for field in fields(recipe_class):
        annotation = hints[field.name]
        inner = next((each for each in (annotation, *get_args(annotation)) if is_dataclass(each)), None)
        if inner is None:
            yield f"{prefix}{field.name}"
        else:
            number = "N." if str(annotation).startswith("list") else ""
            yield from all_recipe_keys(inner, f"{prefix}{field.name}.{number}")


RECIPE_KEYS = {*all_recipe_keys(VLARecipe), *all_recipe_keys(Rocket2Recipe)}


def test_recipe_tables_contain_and_describe_every_key():
    rows = re.findall(
        r"^\| `([\w.]+)` \| (.+) \| (.+) \| (.*) \| (.+) \|$", generator().key_tables(), flags=re.MULTILINE
    )
    assert {row[0] for row in rows} == RECIPE_KEYS
    assert not [key for key, _, _, description, _ in rows if not description.strip()]


def test_recipe_page_receives_the_tables(site):
    page = (site / "recipes.html").read_text()
    for key in RECIPE_KEYS:
        assert f"<code>{key}</code>" in page
    for path in (ROOT / "training" / "recipes").glob("*.yaml"):
        assert f"<code>{path.stem}</code>" in page


@pytest.mark.parametrize("name", TEXTS)
def test_recipe_keys_in_the_texts_exist(name):
    sections = {key.partition(".")[0] for key in RECIPE_KEYS if "." in key}
    spans = [*code_spans(TEXTS[name]), *shell_lines(TEXTS[name])]
    named = {word for span in spans for word in re.findall(r"(?<![\w./-])([a-z_0-9]+(?:\.\w+)+)(?=[\s=]|$)", span)}
    for key in (word for word in named if word.partition(".")[0] in sections):
        numbered = re.sub(r"\.\d+\.", ".N.", key)
        exists = any(each == numbered or each.startswith(f"{numbered}.") for each in RECIPE_KEYS)
        assert exists or Path(key).suffix in (".md", ".yaml", ".json"), f"{name}: there is no recipe key {key}"


def test_recipes_in_the_texts_can_be_read(tmp_path):
    for name, text in PAGES.items():
        for number, block in enumerate(blocks(text, "yaml")):
            path = tmp_path / f"{Path(name).stem}-{number}.yaml"
            path.write_text(block)
            read_recipe(str(path))


# Files


def test_architecture_page_names_every_file():
    tree = "\n".join(blocks(PAGES["architecture.md"], "text"))
    files = [path for room in SOURCE_FOLDERS for path in (ROOT / room).rglob("*.py") if not path.stem.startswith("__")]
    names = set(re.findall(r"([\w/]+\.py)\b", tree))
    known = {Path(name).name for name in names}
    for path in files:
        assert path.name in known, f"docs/architecture.md lacks {path.relative_to(ROOT)}"
    for name in names:
        assert any(f"/{path.relative_to(ROOT)}".endswith(f"/{name}") for path in files), (
            f"docs/architecture.md names {name}, which does not exist"
        )


def test_paths_in_the_texts_exist():
    for name, text in TEXTS.items():
        for span in code_spans(text):
            if "NAME" not in span and re.fullmatch(
                r"(training|examples|tests|docs|modeling|rocket_hf|hub_cards|\.ci)/[\w./]*", span
            ):
                assert (ROOT / span).exists(), f"{name} names {span}, which does not exist"
