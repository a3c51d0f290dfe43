"""Cards tell everything that is known, nothing that is not, and their figures are drawn."""

import ast
import base64
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import yaml

from rocket_hf.hub_cards.cards import adapter_card, dataset_card, model_card, rocket2_card
from rocket_hf.hub_cards.facts import (
    Adapter,
    Artifact,
    Evaluation,
    GeneratedDataset,
    Provenance,
    Robot,
    Rocket2Artifact,
    Rocket2Evaluation,
    Rocket2Rates,
    Source,
    Teacher,
    Training,
)
from rocket_hf.hub_cards.figures import loss_curves, success_rates, thin

ROBOT = Robot(["front", "wrist"], 224, "letterbox", 6, 3, 50, "mean_std", "quantile", None, ["x", "y", "grip"])
ARTIFACT = Artifact(
    "ada/arm", "v1", "pi05", 3_400_000_000, "bfloat16", ROBOT, {"torch": "2.11", "transformers": "5.5"},
    {"float32": 0.005, "bfloat16": 0.06}, 0.4,
)  # fmt: skip
TRAINING = Training(
    "rocket",
    "As in the paper.",
    1000,
    32,
    [("optimizer.lr", 1e-4)],
    [(2, 3, 409), (-1, 24, None)],
    {"action/flow_matching": [(step, math.exp(-step / 300)) for step in range(1, 1001)]},
    Teacher("facebook/VGGT-1B", "abc", "cc-by-nc-4.0", "It forbids commercial use."),
    [("time", "3 hours")],
)
PROVENANCE = Provenance(
    "gemma", Source("lerobot/pi05_base", "f" * 40), [Source("ada/data", "v3")], TRAINING, [Evaluation("goal", 48, 50)],
    20.0, "rotation as axis and angle",
)  # fmt: skip
ADAPTER = Adapter(Source("ada/base", "c" * 40), 16, 32, 120, ["policy.action_in"])
DATASET = GeneratedDataset(
    "ada/reach", "v1", "cc-by-4.0", "MuJoCo 3.3", ["reach the cube"], 100, 5000, 20.0, {"front": (48, 64)}, 6, 5,
    command="rocket-hf simulate", versions={"lerobot": "0.6"},
)  # fmt: skip
GOAL_ARTIFACT = Rocket2Artifact(
    "ada/scout", "main", 1_000_000, "float32", (60, 80), [("walk", 3, 0), ("turn", 9, 4)], False,
    {"none": -1, "hunt": 0}, 128, ["point"], {"torch": "2.11"}, {"float32": 0.005}, {"images": 0.4, "goals": 0.2},
)  # fmt: skip
AFTER_GOALS = Rocket2Evaluation(
    "vizdoom", 60, [Rocket2Rates("every 30 steps", "this policy", Evaluation("own", 48, 50), Evaluation("own", 1, 50))]
)
MODEL_CARD = model_card(ARTIFACT, PROVENANCE)
GOAL_CARD = rocket2_card(GOAL_ARTIFACT, replace(PROVENANCE, after_goals=[AFTER_GOALS]))
ADAPTER_CARD = adapter_card(ARTIFACT, PROVENANCE, ADAPTER)
DATASET_CARD = dataset_card(DATASET)


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    "words",
    [
        "# arm\n", "pi05, 3,400,000,000 parameters, bfloat16", "| cameras, in this order | `front`, `wrist` |",
        "3 numbers: x, y, grip", "resized to 224 x 224 pixels (letterbox)", "| chunk | 50 actions per call |",
        "| control rate | 20 Hz |", "state `mean_std`, actions `quantile`", "rotation as axis and angle",
        "lerobot/pi05_base) at `" + "f" * 40, "ada/data) at `v3`", 'repo, revision = "ada/arm", "v1"', "get_peft_model",
        "LeRobotDataset", "| goal | 96.0 % | 50 | 86.5 - 98.9 % |", "1,000 steps of 32 samples", "| 2 | 3 | 409 |",
        "| -1 | 24 |  |", "`facebook/VGGT-1B` at `abc`, under cc-by-nc-4.0. **It forbids commercial use.**",
        "| action/flow_matching | 0.9967 | 0.03567 |", "| `optimizer.lr` | `0.0001` |", "| time | 3 hours |",
        "6.0 % in bfloat16", "torch 2.11, transformers 5.5", "arxiv.org/abs/2602.17951",
    ],
)  # fmt: skip
def test_a_model_card_tells(words):
    assert words in MODEL_CARD


def test_the_metadata_are_those_that_the_hub_reads():
    told = metadata(MODEL_CARD)
    assert told["library_name"] == "transformers" and told["pipeline_tag"] == "robotics"
    assert told["license"] == "gemma" and told["base_model"] == "lerobot/pi05_base"
    assert told["datasets"] == ["ada/data"] and {"robotics", "vla", "lerobot", "pi05"} <= set(told["tags"])
    assert told["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.96
    told = metadata(ADAPTER_CARD)
    assert (told["library_name"], told["base_model"], told["base_model_relation"]) == ("peft", "ada/base", "adapter")
    told = metadata(DATASET_CARD)
    assert told["task_categories"] == ["robotics"] and told["license"] == "cc-by-4.0" and "LeRobot" in told["tags"]


@pytest.mark.parametrize(
    "words",
    [
        "rank 16, alpha 32, 120 modules; in full: `policy.action_in`", 'revision="' + "c" * 40,
        "base = base.for_robot(repo, revision)", 'dtype="float32"',
        "PeftModel.from_pretrained(base, repo, revision=revision)", "would give wrong actions",
    ],
)  # fmt: skip
def test_an_adapter_card_tells(words):
    assert words in ADAPTER_CARD


@pytest.mark.parametrize(
    "words",
    [
        "100 scripted demonstrations (5,000 frames) in MuJoCo 3.3", "`front` 48 x 64", "6 and 5 numbers",
        "| rate | 20 Hz |", '"ada/reach", revision="v1"', "$ rocket-hf simulate", "Generated with lerobot 0.6.",
        "reach the cube",
    ],
)  # fmt: skip
def test_a_dataset_card_tells(words):
    assert words in DATASET_CARD


def test_what_is_not_known_is_left_out():
    bare = model_card(replace(ARTIFACT, revision="main"), Provenance("mit", Source("ada/base")))
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
    assert "in place of `main`, write the commit that `rocket-hf verify ada/arm` prints" in bare
    assert "More Information Needed" not in bare + MODEL_CARD + ADAPTER_CARD + DATASET_CARD


def test_a_card_of_a_policy_with_goals_leaves_out_what_is_not_known():
    told = "| every 30 steps | this policy | 96.0 % (86.5 - 98.9 %) | 2.0 % (0.4 - 10.5 %) | 50 |"
    bare = rocket2_card(replace(GOAL_ARTIFACT, heads=[]), Provenance("mit", None))
    for words in (told, "lerobot/pi05_base", "## Training", "20 Hz", "steps per second", "`point`", "state.seen"):
        assert (words in GOAL_CARD) == (words != "20 Hz") and words not in bare, words
    assert metadata(bare).keys() == {"license", "pipeline_tag", "tags", "library_name"}
    assert "in place of `main`, write the commit that `rocket-hf verify ada/scout` prints" in bare


@pytest.mark.parametrize("card", [MODEL_CARD, ADAPTER_CARD, DATASET_CARD, GOAL_CARD])
def test_snippets_are_python_and_markdown_is_clean(card):
    snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        ast.parse(snippet)
    assert "\n\n\n\n" not in card and "{{" not in card and "{%" not in card
    for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table


def test_figures_lie_in_the_card_and_are_drawn():
    found = re.findall(r"!\[(.*?)\]\(data:image/svg\+xml;base64,(.*?)\)", MODEL_CARD)
    assert [alt for alt, _ in found] == ["success rates with 95 % intervals", "losses by step"]
    for _, data in found:
        picture = ElementTree.fromstring(base64.b64decode(data))
        assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(MODEL_CARD) < 20_000


def test_a_curve_falls_from_the_top_left_to_the_bottom_right():
    root = ElementTree.fromstring(loss_curves({"a < b": [(step, 10.0 ** (-step / 50)) for step in range(1, 101)]}))
    (line,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points == sorted(points) and points[0][1] == pytest.approx(20) and points[-1] == pytest.approx((490, 260))
    middle = points[len(points) // 2]
    assert middle[1] == pytest.approx(140, abs=2)  # a straight line on a logarithmic scale


def test_thinned_curves_are_means_of_stretches():
    assert thin([(1, 1.0), (2, 3.0)]) == [(1, 1.0), (2, 3.0)]
    long = thin([(step, float(step)) for step in range(1, 321)])
    assert len(long) == 160 and long[0] == (2, 1.5)


def test_bars_are_as_long_as_the_rates():
    root = ElementTree.fromstring(success_rates([Evaluation("a", 1, 2), Evaluation("b", 2, 2)]))
    widths = [rect.attrib["width"] for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths == ["100%", "190.0", "380.0"]


def test_intervals_are_those_of_scipy():
    from scipy.stats import binomtest

    for successes, episodes in ((0, 10), (9, 10), (48, 50), (500, 500)):
        wanted = binomtest(successes, episodes).proportion_ci(method="wilson")
        assert Evaluation("x", successes, episodes).interval == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"provenance\.control_rate is nan"):
        model_card(ARTIFACT, replace(PROVENANCE, control_rate=math.nan))
    broken = replace(TRAINING, curves={"loss": [(1, 1.0), (2, math.inf)]})
    with pytest.raises(ValueError, match=r"provenance\.training\.curves\.loss is inf"):
        model_card(ARTIFACT, replace(PROVENANCE, training=broken))
    with pytest.raises(ValueError, match="3 of 2 episodes"):
        Evaluation("x", 3, 2)
