"""Tests of the repository's structure: contents of the wheel, imports between rooms, shipped code, language, lock file.

    python -m pytest tests/test_house.py

The folders modeling/, training/ and hub_cards/ are installed as rocket_hf.modeling, rocket_hf.training and
rocket_hf.hub_cards. CONTRIBUTING.md lists the floors; transformers' loader of remote code has stricter rules for
modeling/.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports

from rocket_hf.commands import doctor

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"modeling": "rocket_hf/modeling", "training": "rocket_hf/training", "hub_cards": "rocket_hf/hub_cards"}
# A room imports only rooms of lower floors, and rooms of its own floor where that makes no cycle.
# "base" stands for the files directly in rocket_hf/.
FLOORS = (
    ("modeling", "hub_cards"),
    ("base", "export", "convert", "teachers", "sims"),
    ("training",),
    ("evaluation", "publishing", "analysis", "layer_selection"),
    ("study", "bench", "commands"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MAX_LAYERS = 8
ENTRY_FILES = (
    "configuration_rocket", "modeling_rocket", "processing_rocket", "configuration_rocket2", "modeling_rocket2",
)  # fmt: skip


def run_python(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run a new interpreter of this environment with additional environment variables."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def checkout_files() -> list[str]:
    """Return the tracked files and the new files that git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("the list of files needs a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({name for name in listed if (ROOT / name).is_file()})


# The wheel


@pytest.fixture(scope="module")
def copied_checkout(tmp_path_factory) -> Path:
    """Copy the checkout and add a recipe and a template."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in checkout_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    for name in ("training/recipes/added.yaml", "hub_cards/added.jinja"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("found")
    return copy


@pytest.fixture(scope="module")
def installed(copied_checkout, tmp_path_factory) -> Path:
    """Build the wheel and unpack it; for a pure Python package this installs it."""
    folder = tmp_path_factory.mktemp("installed")
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(folder)!r})"
    result = run_python("-c", build, cwd=copied_checkout)
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_contains_every_file_of_every_room(copied_checkout, installed):
    homes = ROOMS | {"rocket_hf": "rocket_hf"}
    files = [
        path.relative_to(copied_checkout)
        for suffix in ("py", "yaml", "jinja")
        for room in homes
        for path in (copied_checkout / room).rglob(f"*.{suffix}")
    ]
    missing = [str(path) for path in files if not (installed / homes[path.parts[0]] / Path(*path.parts[1:])).is_file()]
    assert len(files) > len(homes)
    assert not missing, f"the packages or package-data of pyproject.toml lack {missing}"


def test_installed_package_imports_its_rooms_and_reads_their_data_files(installed, tmp_path):
    program = """
import importlib, importlib.resources, sys
for name in ("modeling.modeling_rocket", "training", "hub_cards"):
    module = importlib.import_module(f"rocket_hf.{name}")
    assert module.__file__.startswith(sys.argv[1]), module.__file__
files = importlib.resources.files
assert files("rocket_hf.training").joinpath("recipes/added.yaml").read_text() == "found"
assert files("rocket_hf.hub_cards").joinpath("added.jinja").read_text() == "found"
"""
    result = run_python("-c", program, str(installed), cwd=tmp_path, PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stderr


# Names


@pytest.mark.parametrize("room", ROOMS)
def test_room_cannot_be_imported_under_its_folder_name(room):
    result = run_python("-c", f"import {room}", cwd=ROOT)
    assert result.returncode == 1
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith(f"ImportError: this folder is the package rocket_hf.{room}, ")
    assert f"write `import rocket_hf.{room}`" in last_line


def test_file_names_in_training_do_not_shadow_imported_packages():
    """`python training/train.py` puts training/ first on sys.path, so training/datasets.py would shadow `datasets`."""
    own = {path.stem for path in (ROOT / "training").glob("*.py")}
    imported = {name.partition(".")[0] for path in python_files("training") for name in absolute_names(path)}
    assert not own & (imported | sys.stdlib_module_names)


def test_importing_the_package_does_not_import_torch_transformers_or_lerobot():
    program = "import rocket_hf, sys; print(*{'lerobot', 'torch', 'transformers'} & sys.modules.keys())"
    result = run_python("-c", program, cwd=ROOT)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


# The floors


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Return the dotted name under which a file of the checkout is imported."""
    room, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = [*ROOMS.get(room, room).split("/"), *rest]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def absolute_names(path: Path) -> Iterator[str]:
    """Yield the names of a file's absolute imports, anywhere in the file: `a` and `a.b` for `from a import b`."""
    for node in imports(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif not node.level and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def relative_names(path: Path) -> Iterator[str]:
    """Yield the absolute names of a file's relative imports."""
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            parents = package[: len(package) + 1 - node.level]
            base = ".".join([*parents, node.module] if node.module else parents)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def within(name: str, *packages: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def test_import_scanner_finds_absolute_and_relative_imports():
    path = ROOT / "modeling" / "modeling_rocket.py"
    assert "torch" in absolute_names(path)
    assert "rocket_hf.modeling.configuration_rocket.RocketConfig" in relative_names(path)
    assert module_name(ROOT / "rocket_hf" / "commands" / "__init__.py") == "rocket_hf.commands"


@pytest.mark.parametrize("room", ["modeling", "hub_cards"])
def test_modeling_and_hub_cards_import_only_their_own_files(room):
    for path in python_files(room):
        assert not [name for name in absolute_names(path) if within(name, "rocket_hf", "lerobot", *ROOMS)], path
        assert not [name for name in relative_names(path) if not within(name, f"rocket_hf.{room}")], path


def room_of(module: str) -> str:
    """Return the room of a module of ours; a file directly in rocket_hf/ is in the room "base"."""
    _, *rest = module.split(".")
    return rest[0] if rest and rest[0] in FLOOR_OF else "base"


def own_modules() -> dict[str, Path]:
    return {module_name(path): path for path in python_files("rocket_hf", *ROOMS)}


def imported_modules(path: Path, modules: dict[str, Path]) -> set[str]:
    """Return the modules of ours that a file imports, anywhere in the file."""
    return {name for name in {*absolute_names(path), *relative_names(path)} if name in modules}


def room_imports() -> dict[str, set[str]]:
    """Return, for each room, the other rooms that its files import. The public names of rocket_hf/__init__.py are lazy
    re-exports and do not count."""
    modules = own_modules()
    graph: dict[str, set[str]] = {room: set() for room in FLOOR_OF}
    for module, path in modules.items():
        if module == "rocket_hf":
            continue
        graph[room_of(module)] |= {room_of(name) for name in imported_modules(path, modules) if name != "rocket_hf"}
    return {room: others - {room} for room, others in graph.items()}


def test_every_folder_of_the_package_is_on_a_floor():
    folders = {path.name for path in (ROOT / "rocket_hf").iterdir() if (path / "__init__.py").is_file()}
    assert folders | set(ROOMS) | {"base"} == set(FLOOR_OF)


def test_rooms_import_only_lower_floors_or_their_own_floor():
    for room, others in room_imports().items():
        upward = {other for other in others if FLOOR_OF[other] > FLOOR_OF[room]}
        assert not upward, f"{room} imports {', '.join(sorted(upward))}, which are on a higher floor"


def test_rooms_form_few_layers_without_a_cycle():
    graph, layers = room_imports(), []
    while graph:
        free = {room for room, others in graph.items() if not others & graph.keys()}
        assert free, f"import cycle between the rooms {', '.join(sorted(graph))}"
        layers.append(free)
        graph = {room: others for room, others in graph.items() if room not in free}
    assert len(layers) <= MAX_LAYERS, layers


# Rules of transformers' loader of remote code for modeling/


def siblings(path: Path) -> set[str]:
    return {node.module for node in imports(path) if isinstance(node, ast.ImportFrom) and node.level and node.module}


@pytest.mark.parametrize("path", python_files("modeling"), ids=lambda path: path.stem)
def test_modeling_files_import_siblings_in_the_form_that_remote_code_can_load(path):
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, "imports from a parent folder do not load as remote code"
            assert node.module, "`from . import file` does not load as remote code: import names from the file"
            assert (ROOT / "modeling" / f"{node.module}.py").is_file(), f"no file modeling/{node.module}.py"
    # The loader finds imports with a regular expression, which also matches text in comments and docstrings.
    assert set(get_relative_imports(path)) == siblings(path)


@pytest.mark.parametrize("entry", ENTRY_FILES)
def test_entry_file_imports_every_sibling_that_it_needs(entry):
    path = ROOT / "modeling" / f"{entry}.py"
    needed, frontier = set(), {entry}
    while frontier:
        needed |= frontier
        frontier = {name for file in frontier for name in siblings(path.with_stem(file))} - needed
    missing = needed - {entry} - siblings(path)
    assert not missing, (
        f"{path.name} must import a name from each of {sorted(missing)}: loading a local folder fails otherwise"
    )


# Content that must not be in the repository


def test_lock_has_hashes_and_no_addresses():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    assert " @ " not in lock
    packages = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)[1:]
    assert len(packages) > 20
    for package in packages:
        assert re.match(r"[a-z0-9-]+==[^ ]+ ", package)
        assert "--hash=sha256:" in package, package


def test_no_file_contains_a_path_of_the_machine_that_wrote_it():
    private = re.compile(rb"(?<![\w.])/(home|root|work)/")
    assert not [name for name in checkout_files() if private.search((ROOT / name).read_bytes())]


# rocket-hf doctor


@pytest.mark.parametrize(
    ("library", "package"),
    [("libGL.so.1", "libgl1"), ("libgomp.so.1", "libgomp1"), ("libglib-2.0.so.0", "libglib2.0-0"),
     ("libstdc++.so.6", "libstdc++6"), ("libavutil.so.60", "ffmpeg"), ("libOSMesa.so.8", "libosmesa6")],
)  # fmt: skip
def test_doctor_names_the_package_of_a_missing_library(library, package, monkeypatch, capsys):
    def fail(name):
        raise ImportError(f"{library}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    assert doctor.run(argparse.Namespace()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert library in printed.err
    assert f"`apt-get install {package}`" in printed.err


def test_doctor_names_the_package_that_cannot_be_imported():
    message = doctor.explain("lerobot.datasets", ModuleNotFoundError("No module named 'av'\nmore"))
    assert message.startswith("lerobot cannot be imported (No module named 'av'): ")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("libavutil.so.60: cannot open shared object file\nmore"), "`apt-get install ffmpeg`"),
        (RuntimeError("undefined symbol\nmore"), "torchcodec does not load: undefined symbol"),
        (ModuleNotFoundError("No module named 'torchcodec'"), "not made for this platform"),
    ],
)
def test_doctor_names_the_video_decoder_in_use(error, expected, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    assert doctor.video_decoder().startswith("PyAV ")
    assert expected in doctor.video_decoder()
