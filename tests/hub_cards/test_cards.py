"""Tests that cards contain all known facts and no unknown ones, and that their figures show the facts."""

import ast
import html
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from markdown_it import MarkdownIt
from PIL import Image

from rocket_hf.hub_cards.cards import EVAL_RESULTS, adapter_card, dataset_card, model_card, rocket2_card
from rocket_hf.hub_cards.facts import (
    AdapterFacts,
    Artifact,
    BenchmarkResult,
    Evaluation,
    GeneratedDataset,
    Provenance,
    RobotFacts,
    Rocket2Artifact,
    Rocket2Evaluation,
    Rocket2Rates,
    RolloutImages,
    Source,
    TeacherFacts,
    TrainingFacts,
)
from rocket_hf.hub_cards.figures import (
    STRIP_BYTES,
    average_windows,
    draw_loss_curves,
    draw_success_rates,
    loss_curves,
    rollout_strips,
)

ROBOT = RobotFacts(["front", "wrist"], 224, "letterbox", 6, 3, 50, "mean_std", "quantile", None, ["x", "y", "grip"])
ARTIFACT = Artifact(
    "ada/arm", "v1", "pi05", 3_400_000_000, "bfloat16", ROBOT, {"torch": "2.11", "transformers": "5.5"},
    {"float32": 0.005, "bfloat16": 0.06}, 0.4,
)  # fmt: skip
TRAINING = TrainingFacts(
    "rocket",
    "As in the paper.",
    1000,
    32,
    [("optimizer.lr", 1e-4)],
    [(2, 3, 409), (-1, 24, None)],
    {"action/flow_matching": [(step, math.exp(-step / 300)) for step in range(1, 1001)]},
    TeacherFacts("facebook/VGGT-1B", "abc", "cc-by-nc-4.0", "It forbids commercial use."),
    [("time", "3 hours")],
)
PROVENANCE = Provenance(
    "gemma", Source("lerobot/pi05_base", "f" * 40), [Source("ada/data", "v3")], TRAINING, [Evaluation("goal", 48, 50)],
    20.0, "rotation as axis and angle",
)  # fmt: skip
ADAPTER = AdapterFacts(Source("ada/base", "c" * 40), 16, 32, 120, ["policy.action_in"])
DATASET = GeneratedDataset(
    "ada/reach", "v1", "cc-by-4.0", "MuJoCo 3.3", ["reach the cube"], 100, 5000, 20.0, {"front": (48, 64)}, 6, 5,
    command="rocket-hf simulate", versions={"lerobot": "0.6"},
)  # fmt: skip
ROCKET2_ARTIFACT = Rocket2Artifact(
    "ada/scout", "main", 1_000_000, "float32", (60, 80), [("walk", 3, 0), ("turn", 9, 4)], False,
    {"none": -1, "hunt": 0}, 128, ["point"], {"torch": "2.11"}, {"float32": 0.005}, {"images": 0.4, "goals": 0.2},
)  # fmt: skip
ROCKET2_EVALUATION = Rocket2Evaluation(
    "vizdoom", 60, [Rocket2Rates("every 30 steps", "this policy", Evaluation("own", 48, 50), Evaluation("own", 1, 50))]
)
MODEL = model_card(ARTIFACT, PROVENANCE)
MODEL_CARD = MODEL.text
ROCKET2_CARD = rocket2_card(ROCKET2_ARTIFACT, replace(PROVENANCE, rocket2_evaluations=[ROCKET2_EVALUATION])).text
ADAPTER_CARD = adapter_card(ARTIFACT, PROVENANCE, ADAPTER).text
DATASET_CARD = dataset_card(DATASET)


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    "words",
    [
        "# arm\n", "pi05, 3,400,000,000 parameters, bfloat16", "| cameras, in this order | `front`, `wrist` |",
        "3 dimensions: x, y, grip", "resized to 224 x 224 pixels (letterbox)", "| chunk | 50 actions per call |",
        "| control rate | 20 Hz |", "state `mean_std`, actions `quantile`", "rotation as axis and angle",
        "lerobot/pi05_base) at `" + "f" * 40, "ada/data) at `v3`", 'repo, revision = "ada/arm", "v1"', "get_peft_model",
        "LeRobotDataset", "| goal | 96.0 % | 50 | 86.5 - 98.9 % |", "1,000 steps of 32 samples", "| 2 | 3 | 409 |",
        "| -1 | 24 |  |", "`facebook/VGGT-1B` at `abc`, under cc-by-nc-4.0. **It forbids commercial use.**",
        "| action/flow_matching | 0.9967 | 0.03567 |", "| `optimizer.lr` | `0.0001` |", "| time | 3 hours |",
        "6.0 % in bfloat16", "torch 2.11, transformers 5.5", "arxiv.org/abs/2602.17951",
    ],
)  # fmt: skip
def test_model_card_contains_all_facts(words):
    assert words in MODEL_CARD


def test_card_metadata_has_the_fields_that_the_hub_reads():
    values = metadata(MODEL_CARD)
    assert values["library_name"] == "transformers" and values["pipeline_tag"] == "robotics"
    assert values["license"] == "gemma" and values["base_model"] == "lerobot/pi05_base"
    assert values["datasets"] == ["ada/data"] and {"robotics", "vla", "lerobot", "pi05"} <= set(values["tags"])
    assert values["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.96
    values = metadata(ADAPTER_CARD)
    assert values["library_name"] == "peft"
    assert (values["base_model"], values["base_model_relation"]) == ("ada/base", "adapter")
    values = metadata(DATASET_CARD)
    assert values["task_categories"] == ["robotics"] and values["license"] == "cc-by-4.0"
    assert "LeRobot" in values["tags"]


@pytest.mark.parametrize(
    "words",
    [
        "rank 16, alpha 32, 120 modules; modules trained in full: `policy.action_in`", 'revision="' + "c" * 40,
        "base = base.for_robot(repo, revision)", 'dtype="float32"',
        "PeftModel.from_pretrained(base, repo, revision=revision)", "would give wrong actions",
    ],
)  # fmt: skip
def test_adapter_card_contains_all_facts(words):
    assert words in ADAPTER_CARD


@pytest.mark.parametrize(
    "words",
    [
        "100 scripted demonstrations (5,000 frames) in MuJoCo 3.3", "`front` 48 x 64", "6 and 5 dimensions",
        "| rate | 20 Hz |", '"ada/reach", revision="v1"', "$ rocket-hf simulate", "Recorded with lerobot 0.6.",
        "reach the cube",
    ],
)  # fmt: skip
def test_dataset_card_contains_all_facts(words):
    assert words in DATASET_CARD


def test_unknown_facts_are_left_out_of_model_card():
    bare = model_card(replace(ARTIFACT, revision="main"), Provenance("mit", Source("ada/base"))).text
    for words in (
        "None |",
        "Evaluation",
        "## Training",
        "control rate",
        "conventions",
        "datasets:",
        "model-index",
        ") at `",
    ):
        assert words not in bare, words
    assert "Replace `main` by the commit that `rocket-hf verify ada/arm` prints" in bare
    assert "More Information Needed" not in bare + MODEL_CARD + ADAPTER_CARD + DATASET_CARD


def test_unknown_facts_are_left_out_of_rocket2_card():
    rates = "| every 30 steps | this policy | 96.0 % (86.5 - 98.9 %) | 2.0 % (0.4 - 10.5 %) | 50 |"
    bare = rocket2_card(replace(ROCKET2_ARTIFACT, heads=[]), Provenance("mit", None)).text
    for words in (rates, "lerobot/pi05_base", "## Training", "20 Hz", "steps per second", "`point`", "state.seen"):
        assert (words in ROCKET2_CARD) == (words != "20 Hz") and words not in bare, words
    assert metadata(bare).keys() == {"license", "pipeline_tag", "tags", "library_name"}
    assert "Replace `main` by the commit that `rocket-hf verify ada/scout` prints" in bare


@pytest.mark.parametrize("card", [MODEL_CARD, ADAPTER_CARD, DATASET_CARD, ROCKET2_CARD])
def test_snippets_are_python_and_tables_have_equal_rows(card):
    snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        ast.parse(snippet)
    assert "\n\n\n\n" not in card and "{{" not in card and "{%" not in card
    for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table


def test_card_refers_to_its_figures_by_relative_path(tmp_path):
    found = re.findall(r"!\[(.*?)\]\((.*?)\)", MODEL_CARD)
    assert found == [
        ("success rates with 95 % intervals", "figures/success_rates.png"),
        ("losses by step", "figures/loss_curves.png"),
    ]
    MODEL.write(tmp_path)
    assert (tmp_path / "README.md").read_text() == MODEL_CARD
    for _, path in found:
        image = Image.open(tmp_path / path)
        assert image.format == "PNG" and image.width > 600 and len(image.getcolors(256)) > 2
    assert sum(map(len, MODEL.files.values())) < 100_000 and len(MODEL_CARD) < 20_000


def test_figures_are_the_same_bytes_for_the_same_facts():
    assert model_card(ARTIFACT, PROVENANCE).files == MODEL.files


def test_loss_curve_falls_from_top_left_to_bottom_right():
    curve = [(step, 10.0 ** (-step / 50)) for step in range(1, 101)]
    axes = draw_loss_curves({"a < $b": curve}).axes[0]
    (line,) = axes.lines
    points = axes.transAxes.inverted().transform(axes.transData.transform(line.get_xydata()))
    assert np.array_equal(line.get_xydata(), curve) and axes.get_yscale() == "log"
    assert (np.diff(points[:, 0]) > 0).all() and (np.diff(points[:, 1]) < 0).all()
    assert points[0] == pytest.approx([0.05, 0.95], abs=0.01) and points[-1] == pytest.approx([0.95, 0.05], abs=0.01)
    assert points[50, 1] == pytest.approx(0.5, abs=0.02)  # a straight line on a logarithmic scale
    assert Image.open(io.BytesIO(loss_curves({"a < $b": curve}))).format == "PNG"


def test_long_curves_are_averaged_over_windows():
    assert average_windows([(1, 1.0), (2, 3.0)]) == [(1, 1.0), (2, 3.0)]
    long = average_windows([(step, float(step)) for step in range(1, 321)])
    assert len(long) == 160 and long[0] == (2, 1.5)


def test_bars_are_as_long_as_the_success_rates():
    axes = draw_success_rates([Evaluation("a", 1, 2), Evaluation("b", 2, 2)]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 1.0] and axes.get_xlim() == (0, 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["50.0%", "100.0%"]


def noise(width: int, height: int) -> bytes:
    """Return a PNG file that hardly compresses."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("card", [model_card, rocket2_card])
def test_card_shows_one_successful_and_one_failed_rollout(card):
    artifact = ARTIFACT if card is model_card else ROCKET2_ARTIFACT
    rollouts = RolloutImages(success=noise(1500, 120), failure=noise(900, 120))
    rendered = card(artifact, replace(PROVENANCE, rollouts=rollouts))
    assert rendered.text.count("(figures/rollouts.png)") == 1
    content = rendered.files["figures/rollouts.png"]
    assert len(content) <= STRIP_BYTES and Image.open(io.BytesIO(content)).width > 320
    one = Image.open(io.BytesIO(rollout_strips(RolloutImages(failure=noise(300, 60)))))
    assert one.size == (316, 92)


def test_benchmark_results_are_in_the_format_of_the_hub():
    result = BenchmarkResult("HuggingFaceVLA/libero", "libero_goal", Evaluation("libero", 48, 50))
    card = model_card(ARTIFACT, replace(PROVENANCE, benchmark_results=[result]))
    (entry,) = parse_eval_result_entries(yaml.safe_load(card.files[EVAL_RESULTS]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("HuggingFaceVLA/libero", "libero_goal", 96.0)
    assert entry.source_url == "https://huggingface.co/ada/arm" and "48 of 50 episodes" in entry.notes
    assert EVAL_RESULTS not in MODEL.files


def test_intervals_equal_those_of_scipy():
    from scipy.stats import binomtest

    for successes, episodes in ((0, 10), (9, 10), (48, 50), (500, 500)):
        wanted = binomtest(successes, episodes).proportion_ci(method="wilson")
        assert Evaluation("x", successes, episodes).interval == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_facts_that_are_not_finite_are_rejected():
    with pytest.raises(ValueError, match=r"provenance\.control_rate is nan"):
        model_card(ARTIFACT, replace(PROVENANCE, control_rate=math.nan))
    broken = replace(TRAINING, curves={"loss": [(1, 1.0), (2, math.inf)]})
    with pytest.raises(ValueError, match=r"provenance\.training\.curves\.loss is inf"):
        model_card(ARTIFACT, replace(PROVENANCE, training=broken))
    with pytest.raises(ValueError, match="3 of 2 episodes"):
        Evaluation("x", 3, 2)


# Text from datasets and users

HOSTILE = 'x`|</td>[a](https://evil.example) **b**\n```\nimport os"]\n'


def test_hostile_names_are_text_in_markdown_and_strings_in_python():
    robot = replace(ROBOT, cameras=[HOSTILE, "front"], state_names=[HOSTILE], action_names=[HOSTILE])
    teacher = TeacherFacts(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    training = replace(TRAINING, recipe=HOSTILE, about=HOSTILE, settings=[(HOSTILE, HOSTILE)], teacher=teacher)
    evaluation = Evaluation(HOSTILE, 1, 2)
    provenance = replace(PROVENANCE, conventions=HOSTILE, training=training, evaluations=[evaluation])
    artifact = replace(ARTIFACT, robot=robot, revision='v1"\n')
    rocket2 = replace(ROCKET2_ARTIFACT, actions=[(HOSTILE, 3, 0)])
    cards = [
        model_card(artifact, provenance).text,
        adapter_card(artifact, provenance, replace(ADAPTER, full=[HOSTILE])).text,
        rocket2_card(rocket2, replace(provenance, evaluations=[])).text,
        dataset_card(replace(DATASET, tasks=[HOSTILE], cameras={HOSTILE: (1, 1)}, robot=HOSTILE, command=HOSTILE)),
    ]
    shown = " ".join(HOSTILE.split())
    renderer = MarkdownIt("commonmark", {"html": True}).enable("table")
    for card in cards:
        metadata(card)
        body = card.split("---\n", 2)[2]
        page = renderer.render(body)
        text = html.unescape(re.sub(r"<[^>]*>", "", page))
        assert shown in text and 'evil.example"' not in page and "<strong>b</strong>" not in page
        assert page.count("</td>") == page.count("<td>") + page.count("<td style")
        snippets = [token.content for token in renderer.parse(body) if token.info == "python"]
        assert snippets
        for snippet in snippets:
            ast.parse(snippet)
    names = ast.parse(re.findall(r"images=(\{.*?\}),\n", cards[0])[0], mode="eval").body
    assert isinstance(names, ast.Dict) and [key.value for key in names.keys] == [HOSTILE, "front"]


def test_links_of_datasets_lead_to_datasets_and_links_of_models_to_models():
    assert "](https://huggingface.co/datasets/ada/data) at `v3`" in MODEL_CARD
    assert "](https://huggingface.co/lerobot/pi05_base)" in MODEL_CARD
    assert "](https://huggingface.co/datasets/ada/data)" in ADAPTER_CARD
