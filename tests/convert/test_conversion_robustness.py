"""Damaged conversion sources, full disks and repeated conversions, with real files and processes."""

import copy
import json
import os
import random
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from rocket_hf.bench.lerobot_tiny import lerobot_policy
from rocket_hf.commands import main
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.tiny import PI0_SIZES, tiny_config

from .test_lerobot import save_lerobot_policy
from .test_openvla import oft, openvla  # noqa: F401

HEADS = {
    "lerobot-pi0": ["--heads", "vision=2"],
    "openvla-oft": ["--heads", "dino=1", "--heads", "siglip=1"],
}


@pytest.fixture(params=[pytest.param("lerobot-pi0", marks=pytest.mark.needs_lerobot), "openvla-oft"])
def source(request, tmp_path):
    """Arguments of a conversion without its destination; the second is the source's folder."""
    family = request.param
    if family == "openvla-oft":
        return [family, request.getfixturevalue("oft"), *HEADS[family]]
    torch.manual_seed(0)
    policy = lerobot_policy(tiny_config(policy_config=Pi0Config(variant="pi0", **PI0_SIZES), alignment=None))
    folder = save_lerobot_policy(policy, tmp_path)
    return [family, folder, "--tokenizer", str(tmp_path / "tokenizer"), *HEADS[family]]


def arguments_for(source, destination) -> list[str]:
    family, folder, *options = source
    return ["convert", family, str(folder), str(destination), *options]


def content_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CONVERT = """
import json, sys
from rocket_hf.commands import main

sys.exit(max(main(arguments) for arguments in json.loads(sys.argv[1])))
"""


def run_in_process(*commands, hash_seed="0", largest_file=None):
    """Run conversions in a process of their own, in which no file may be larger than `largest_file` bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.run(
        [sys.executable, "-c", CONVERT, json.dumps(commands)],
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        preexec_fn=limit if largest_file else None,
    )


def test_repeated_conversions_are_bit_identical(source, tmp_path):
    """Python orders sets by a random seed of the process, which must not reach the files."""
    commands, contents = [arguments_for(source, tmp_path / "out" / "ours")], []
    if source[0] == "lerobot-pi0":
        commands.append(arguments_for(["to-lerobot", tmp_path / "out" / "ours"], tmp_path / "out" / "lerobot"))
    for seed in ("1", "2"):
        done = run_in_process(*commands, hash_seed=seed)
        assert done.returncode == 0, done.stderr
        contents.append(content_of(tmp_path / "out"))
        shutil.rmtree(tmp_path / "out")
    assert contents[0].keys() == contents[1].keys()
    assert [name for name, content in contents[0].items() if content != contents[1][name]] == []


def test_full_disk_is_reported_and_leaves_nothing(source, tmp_path):
    """The operating system refuses to write more than 20,000 bytes of a file."""
    done = run_in_process(arguments_for(source, tmp_path / "out" / "ours"), largest_file=20_000)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "Cannot write" in done.stderr and "free some space" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def paths_in(value, path=()):
    """Yield the path of each value in a nested JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from paths_in(child, (*path, key))


def mutated(content, path, change):
    """Return a copy in which the value at `path` is replaced by `change`, or removed if `change` is Ellipsis."""
    if not path:
        return {} if change is ... else change
    content = copy.deepcopy(content)
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    if change is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = change
    return content


CHANGES = (..., [], {}, None, "text", -1, 0, True, [None], {"a": []}, 1e400)


def test_changed_json_files_never_end_in_a_traceback(source, tmp_path, capsys):
    """Seeded changes of single values: lists for objects, missing keys, other types. Unknown errors leave `main`."""
    draw, folder = random.Random(0), source[1]
    files = [path for path in folder.glob("*.json") if not path.name.startswith("tokenizer")]
    for number in range(40):
        file = draw.choice(files)
        original = file.read_text()
        content = json.loads(original)
        file.write_text(json.dumps(mutated(content, draw.choice(list(paths_in(content))), draw.choice(CHANGES))))
        destination = tmp_path / f"out{number}" / "ours"
        code = main(arguments_for(source, destination))
        message = capsys.readouterr().err
        assert code in (0, 2), file.read_text()
        if code == 2:
            assert message.startswith("rocket-hf convert: ") and len(message.splitlines()) == 1, message
            assert not destination.parent.exists() or not list(destination.parent.iterdir())
        file.write_text(original)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_truncated_weights_are_reported(source, tmp_path, capsys, share):
    for path in source[1].glob("*.safetensors"):
        if path.name.startswith("model"):
            path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert main(arguments_for(source, tmp_path / "ours")) == 2
    assert "is damaged or incomplete" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "dataset_statistics.json"])
@pytest.mark.parametrize("content", ["[]", "[1, 2]", "null", '"text"', "{}", "{"])
def test_json_files_of_another_kind_are_reported(oft, tmp_path, capsys, name, content):  # noqa: F811
    (oft / name).write_text(content)
    arguments = arguments_for(["openvla-oft", oft, *HEADS["openvla-oft"]], tmp_path / "ours")
    code, message = main(arguments), capsys.readouterr().err
    expected_code = 0 if code == 0 and content == "{}" else 2
    assert code == expected_code and ("Traceback" not in message)
    if code == 2:
        assert len(message.splitlines()) == 1


def test_missing_tokenizer_is_one_sentence(source, tmp_path, capsys):
    for folder in (source[1], tmp_path / "tokenizer"):
        (folder / "tokenizer.json").unlink(missing_ok=True)
    assert main(arguments_for(source, tmp_path / "ours")) == 2
    assert "has no tokenizer.json: save it with" in (message := capsys.readouterr().err)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("key", ["r", "use_rslora", "rank_pattern"])
def test_unsupported_adapters_are_rejected(oft, tmp_path, capsys, key):  # noqa: F811
    """A scale that is not alpha / r would silently give other weights."""
    adapter = oft / "lora_adapter"
    adapter.mkdir()
    settings = {"r": 4, "lora_alpha": 8} | {key: {"r": 0, "use_rslora": True, "rank_pattern": {"up_proj": 2}}[key]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    shutil.copy(next(oft.glob("model-*.safetensors")), adapter / "adapter_model.safetensors")
    assert main([*arguments_for(["openvla-oft", oft], tmp_path / "ours"), "--base", str(oft)]) == 2
    assert f"adapter_config.json sets {key}" in capsys.readouterr().err
