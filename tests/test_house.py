"""The house itself: what the wheel holds, how the rooms may be imported, which floor imports which, the lock.

    python -m pytest tests/test_house.py

The rooms modeling/, training/ and hub_cards/ are installed as rocket_hf.modeling and so on. CONTRIBUTING.md tells the
four floors; transformers' loader of remote code sets the stricter rules of modeling/.
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
FRONT_DOOR = ("rocket_hf.commands", "rocket_hf.bench", "rocket_hf.study")
ENTRY_FILES = (
    "configuration_rocket", "modeling_rocket", "processing_rocket", "configuration_rocket2", "modeling_rocket2",
)  # fmt: skip


def run_python(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    """A fresh interpreter, which sees the packages of this environment and the variables given."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def checkout_files() -> list[str]:
    """What a contributor sees: tracked files and new ones that git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout can tell its files")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({name for name in listed if (ROOT / name).is_file()})


# The wheel


@pytest.fixture(scope="module")
def copied_checkout(tmp_path_factory) -> Path:
    """A copy of the checkout with one more recipe and one more template, in folders that hold no code."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in checkout_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    for name in ("training/recipes/of_the_test.yaml", "hub_cards/of_the_test.jinja"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("found")
    return copy


@pytest.fixture(scope="module")
def installed(copied_checkout, tmp_path_factory) -> Path:
    """The folder into which the wheel is installed: for pure Python that is unpacking it."""
    folder = tmp_path_factory.mktemp("installed")
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(folder)!r})"
    result = run_python("-c", build, cwd=copied_checkout)
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_holds_every_file_of_every_room(copied_checkout, installed):
    homes = ROOMS | {"rocket_hf": "rocket_hf"}
    files = [
        path.relative_to(copied_checkout)
        for suffix in ("py", "yaml", "jinja")
        for room in homes
        for path in (copied_checkout / room).rglob(f"*.{suffix}")
    ]
    missing = [str(path) for path in files if not (installed / homes[path.parts[0]] / Path(*path.parts[1:])).is_file()]
    assert len(files) > len(homes)
    assert not missing, f"pyproject.toml's packages or package-data leave out {missing}"


def test_installed_rooms_are_imported_and_opened_from_where_they_lie(installed, tmp_path):
    program = """
import importlib, importlib.resources, sys
for name in ("modeling.modeling_rocket", "training", "hub_cards"):
    module = importlib.import_module(f"rocket_hf.{name}")
    assert module.__file__.startswith(sys.argv[1]), module.__file__
files = importlib.resources.files
assert files("rocket_hf.training").joinpath("recipes/of_the_test.yaml").read_text() == "found"
assert files("rocket_hf.hub_cards").joinpath("of_the_test.jinja").read_text() == "found"
"""
    result = run_python("-c", program, str(installed), cwd=tmp_path, PYTHONPATH=str(installed))
    assert result.returncode == 0, result.stderr


# Names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_one_name_only(room):
    result = run_python("-c", f"import {room}", cwd=ROOT)
    assert result.returncode == 1
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith(f"ImportError: this folder is the package rocket_hf.{room}, ")
    assert f"write `import rocket_hf.{room}`" in last_line


def test_no_file_of_training_hides_what_it_imports():
    """`python training/train.py` puts training/ first on the path, so a training/datasets.py would hide datasets."""
    own = {path.stem for path in (ROOT / "training").glob("*.py")}
    imported = {name.partition(".")[0] for path in python_files("training") for name in absolute_names(path)}
    assert not own & (imported | sys.stdlib_module_names)


def test_importing_the_package_loads_nothing_heavy():
    program = "import rocket_hf, sys; print(*{'lerobot', 'torch', 'transformers'} & sys.modules.keys())"
    result = run_python("-c", program, cwd=ROOT)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


# The four floors


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """The dotted name under which a file of the checkout is imported."""
    room, *rest = path.relative_to(ROOT).with_suffix("").parts
    parts = [*ROOMS.get(room, room).split("/"), *rest]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def absolute_names(path: Path) -> Iterator[str]:
    """The dotted names that a file imports absolutely, wherever in the file: `a` and `a.b` for `from a import b`."""
    for node in imports(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif not node.level and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def relative_names(path: Path) -> Iterator[str]:
    """The same for relative imports, with the package put before them."""
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            parents = package[: len(package) + 1 - node.level]
            base = ".".join([*parents, node.module] if node.module else parents)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def within(name: str, *packages: str) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def test_imports_are_found():
    path = ROOT / "modeling" / "modeling_rocket.py"
    assert "torch" in absolute_names(path)
    assert "rocket_hf.modeling.configuration_rocket.RocketConfig" in relative_names(path)
    assert module_name(ROOT / "rocket_hf" / "commands" / "__init__.py") == "rocket_hf.commands"


@pytest.mark.parametrize("room", ["modeling", "hub_cards"])
def test_the_ground_floor_imports_nothing_of_ours(room):
    for path in python_files(room):
        assert not [name for name in absolute_names(path) if within(name, "rocket_hf", "lerobot", *ROOMS)], path
        assert not [name for name in relative_names(path) if not within(name, f"rocket_hf.{room}")], path


@pytest.mark.parametrize(
    ("floor", "above"),
    [
        ("rocket_hf", ("rocket_hf.training", *FRONT_DOOR)),
        ("training", FRONT_DOOR),
    ],
)
def test_a_floor_imports_nothing_from_above(floor, above):
    front_door = {ROOT / room.replace(".", "/") for room in FRONT_DOOR}
    for path in python_files(floor):
        if not front_door & set(path.parents):
            names = {*absolute_names(path), *relative_names(path)}
            assert not [name for name in names if within(name, *above, *ROOMS)], path


# What transformers' loader of remote code asks of modeling/


def siblings(path: Path) -> set[str]:
    return {node.module for node in imports(path) if isinstance(node, ast.ImportFrom) and node.level and node.module}


@pytest.mark.parametrize("path", python_files("modeling"), ids=lambda path: path.stem)
def test_modeling_is_flat(path):
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, "no import from a folder above"
            assert node.module, "no `from . import file`: name what is imported from it"
            assert (ROOT / "modeling" / f"{node.module}.py").is_file(), f"no file modeling/{node.module}.py"
    # The loader finds imports by a pattern, in comments and docstrings too.
    assert set(get_relative_imports(path)) == siblings(path)


@pytest.mark.parametrize("entry", ENTRY_FILES)
def test_an_entry_file_names_every_sibling_that_it_needs(entry):
    path = ROOT / "modeling" / f"{entry}.py"
    needed, frontier = set(), {entry}
    while frontier:
        needed |= frontier
        frontier = {name for file in frontier for name in siblings(path.with_stem(file))} - needed
    missing = needed - {entry} - siblings(path)
    assert not missing, f"import a name from each of {sorted(missing)} in {path.name}, or loading a local folder fails"


# What must not be in the repository


def test_lock_has_hashes_and_no_addresses():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    assert " @ " not in lock
    packages = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)[1:]
    assert len(packages) > 20
    for package in packages:
        assert re.match(r"[a-z0-9-]+==[^ ]+ ", package)
        assert "--hash=sha256:" in package, package


def test_no_file_tells_where_it_was_written():
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


def test_doctor_says_what_cannot_be_imported():
    sentence = doctor.explain("lerobot.datasets", ModuleNotFoundError("No module named 'av'\nmore"))
    assert sentence.startswith("lerobot cannot be imported (No module named 'av'): ")


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (RuntimeError("libavutil.so.60: cannot open shared object file\nmore"), "`apt-get install ffmpeg`"),
        (RuntimeError("undefined symbol\nmore"), "torchcodec does not load: undefined symbol"),
        (ModuleNotFoundError("No module named 'torchcodec'"), "not made for this platform"),
    ],
)
def test_doctor_says_which_video_decoder_is_used(error, wanted, monkeypatch):
    def fail(name):
        raise error

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    assert doctor.video_decoder().startswith("PyAV ")
    assert wanted in doctor.video_decoder()
