"""Reports of ROCKET-2 evaluations, compared with values computed by hand; figures and videos of episodes."""

import json

import numpy as np
import pytest
from PIL import Image

from rocket_hf.evaluation.report import REPORT, TEXT, PolicyIdentity, read_evaluation
from rocket_hf.evaluation.rocket2.episode import Rocket2Episode, VisibilityRecord
from rocket_hf.evaluation.rocket2.figures import (
    CONFIDENT,
    OUTLINE,
    TEXT_HEIGHT,
    UNCERTAIN,
    VideoRecorder,
    frame_cell,
    outline_mask,
)
from rocket_hf.evaluation.rocket2.players import PlayerOutput
from rocket_hf.evaluation.rocket2.report import Rocket2EvaluationReport, Rocket2EvaluationResult
from rocket_hf.evaluation.rocket2.rollouts import EpisodeFrame, PlayerRollouts
from rocket_hf.evaluation.rocket2.simulator import GoalView, Rocket2Reply, Rocket2Start
from rocket_hf.evaluation.rocket2.visibility import bootstrap_interval, visibility_metrics
from rocket_hf.evaluation.rollout_strips import MAX_BYTES
from rocket_hf.evaluation.statistics import wilson_interval
from rocket_hf.sims.vizdoom.maps import Pose

NOWHERE = (-1.0, -1.0)


def visibility_records(*values):
    """Create records from tuples of (is visible, true point, predicted visibility, predicted point)."""
    return tuple(
        VisibilityRecord(is_visible, point, PlayerOutput((0, 0, 0), predicted, predicted_point))
        for is_visible, point, predicted, predicted_point in values
    )


PREDICTIONS = visibility_records(
    (True, (0.5, 0.2), 0.9, (0.5, 0.3)),
    (True, (0.5, 0.4), 0.2, (0.7, 0.4)),
    (True, (0.5, 0.9), 0.8, (0.5, 0.5)),
    (False, NOWHERE, 0.7, (0.0, 0.0)),
    (False, NOWHERE, 0.1, (9.0, 9.0)),
)
NO_PREDICTIONS = visibility_records((True, (0.5, 0.5), None, None))


def run(events, seconds=2.0, records=PREDICTIONS):
    names = {"t": "target", "w": "wrong", "-": "none"}
    return PlayerRollouts(
        tuple(
            Rocket2Episode(Rocket2Start(7 + number, number % 4), "tree", names[event], 10 + number, records)
            for number, event in enumerate(events)
        ),
        seconds,
        3 * seconds,
    )


def result(name, **events):
    return Rocket2EvaluationResult(
        PolicyIdentity(name, None, f"hash of {name}"), {int(key[1:]): run(value) for key, value in events.items()}
    )


@pytest.fixture
def report():
    first, second = result("one", r1="tttttttw", r90="tttwww--"), result("two", r1="--------", r90="ttwwwwww")
    return Rocket2EvaluationReport(
        first, second, run("t-wwwwww", records=NO_PREDICTIONS), {"seed": 7}, {"torch": "2.11"}
    )


def test_json_has_counts_and_paired_comparisons(report, tmp_path):
    report.write(tmp_path / "new")
    values = json.loads((tmp_path / "new" / REPORT).read_text())
    often, rare = values["refreshes"]["1"], values["refreshes"]["90"]
    assert often["target"] == {"count": 7, "episodes": 8, "rate": 7 / 8, "interval": list(wilson_interval(7, 8))}
    assert [rare[event]["count"] for event in ("target", "wrong", "neither")] == [3, 3, 2]
    assert rare["mean_steps_of_successes"] == 11
    assert rare["episodes"][3] == {"seed": 10, "target": 3, "kind": "tree", "event": "wrong", "steps": 13}
    pairs = [rare["against_random"][event] for event in ("target", "wrong")]
    counts = ("both", "only_first", "only_second", "neither")
    assert [[pair[count] for count in counts] for pair in pairs] == [[1, 2, 0, 5], [3, 0, 3, 2]]
    assert values["comparison"]["90"]["target"]["only_first"] == 1
    assert values["comparison"]["1"]["target"]["difference"] == 7 / 8
    assert values["random"]["wrong"]["count"] == 6
    assert values["speed"]["one"]["1"]["steps_per_second"] == sum(range(10, 18)) / 2


def test_model_card_reads_the_result_of_the_longest_refresh(report, tmp_path):
    report.write(tmp_path)
    evaluation, fingerprint = read_evaluation(tmp_path)
    assert (evaluation.suite, evaluation.successes, evaluation.episodes) == ("vizdoom", 3, 8)
    assert fingerprint == "hash of one"


def test_markdown_has_rates_differences_and_visibility(report, tmp_path):
    report.write(tmp_path)
    text = (tmp_path / TEXT).read_text()
    assert "| at every step | one | 7 of 8: 87.5 % (52.9 to 97.8) | 1 of 8: 12.5 % (2.2 to 47.1) | 54 |" in text
    assert "|  | random | 1 of 8: 12.5 % (2.2 to 47.1) | 6 of 8: 75.0 %" in text
    assert "| every 90 steps | one - random | +25.0 (" in text and "| every 90 steps | one - two | +12.5 (" in text
    assert "With the goal shown every 90 steps, one succeeds +25.0 points against random" in text
    assert "accuracy 60.0 %, constant 60.0 %; +0.0 (+0.0 to +0.0)" in text
    assert "- seed: 7" in text and "run with torch 2.11" in text


def test_predictions_are_compared_with_the_best_constant():
    """3 of 5 steps are right, as with "always in view". The errors of x are 0.1, 0 and 0.4; the median of x is 0.4."""
    values = visibility_metrics(run("tt").episodes)
    assert (values["steps"], values["visible_steps"]) == (10, 6)
    assert values["visibility"]["accuracy"] == values["visibility"]["constant"] == 0.6
    x, y = values["point"]["x"], values["point"]["y"]
    assert x["error"] == pytest.approx(0.5 / 3) and x["constant"] == pytest.approx(0.7 / 3)
    assert y["error"] == pytest.approx(0.2 / 3) and y["constant"] == 0
    assert x["interval"] == pytest.approx([x["difference"]] * 2), "all episodes are alike"


def test_missing_heads_and_goals_never_in_view_are_distinguished(report):
    without_heads = visibility_metrics(run("t", records=NO_PREDICTIONS).episodes)
    assert without_heads["visibility"] is None and without_heads["point"] is None
    hidden = visibility_metrics(run("t", records=PREDICTIONS[3:]).episodes)
    assert hidden["point"] == {} and hidden["visibility"]["accuracy"] == 0.5
    blind = Rocket2EvaluationResult(report.first.policy, {90: run("t" * 8, records=NO_PREDICTIONS)})
    hidden = Rocket2EvaluationResult(report.first.policy, {90: run("t" * 8, records=PREDICTIONS[3:])})
    assert (
        "| one | no such head | no such head | no such head |"
        in Rocket2EvaluationReport(blind, None, report.random, {}).as_markdown()
    )
    assert "| never in view | never in view |" in Rocket2EvaluationReport(hidden, None, report.random, {}).as_markdown()


def test_intervals_resample_episodes():
    """A hundred steps of two episodes count as two values, so their mean may be that of either episode."""
    values, owners = np.repeat([0.0, 1.0], 50), np.repeat([0, 1], 50)
    assert bootstrap_interval(values, owners) == (0.0, 1.0)
    many = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval(many, np.arange(400))
    half = 1.96 * many.std(ddof=1) / 20
    assert (low, high) == pytest.approx((many.mean() - half, many.mean() + half), abs=0.015)


# Figures and videos


def reply(steps=0, event="none"):
    mask = np.zeros((60, 80), bool)
    mask[20:30, 40:60] = True
    image = np.full((60, 80, 3), 100, np.uint8)
    goal = GoalView(image, mask, Pose((0, 0), 0))
    return Rocket2Reply(image, goal if not steps else None, steps, event, 60, mask, Pose((0, 0), 0))


def episode_frame(steps, output=None, event="none"):
    return EpisodeFrame(reply(steps, event), reply().goal, output)


def test_mask_is_outlined_and_its_inside_unchanged():
    first = reply()
    image = np.asarray(outline_mask(first.image, first.mask, 4))
    assert image.shape == (240, 320, 3)
    assert (image[80:120, 160:240] == 100).all(), "the object itself"
    assert (image[100, 158:160] == OUTLINE).all() and (image[100, 240:242] == OUTLINE).all()
    assert (image[100, 157] == 0).all() and (image[100, 156] == 100).all()


@pytest.mark.parametrize(
    ("output", "color"),
    [
        (PlayerOutput((0, 0, 0), 0.9, (0.75, 0.25)), CONFIDENT),
        (PlayerOutput((0, 0, 0), 0.1, (0.75, 0.25)), UNCERTAIN),
        (None, (100, 100, 100)),
    ],
)
def test_cross_is_at_the_predicted_point(output, color):
    image = np.asarray(frame_cell(episode_frame(3, output), 4))
    assert image.shape == (240 + TEXT_HEIGHT, 320, 3)
    assert tuple(image[179, 80]) == color


def test_recorder_writes_strips_of_first_outcomes_and_videos_of_all_episodes(tmp_path):
    av = pytest.importorskip("av")
    recorder = VideoRecorder(tmp_path / "videos")
    for seed, event in ((9, "target"), (8, "target"), (10, "none")):
        output = PlayerOutput((0, 0, 0), 0.9, (0.5, 0.5))
        frames = [episode_frame(0, output), episode_frame(1, output), episode_frame(2, None, event)]
        recorder(Rocket2Episode(Rocket2Start(seed, 0), "big tree", event, 2, ()), frames)
    assert {event: episode.start.seed for event, (episode, _) in recorder.first_episodes.items()} == {
        "target": 8,
        "none": 10,
    }
    recorder.write_strip(tmp_path / "strip.png", "title")
    recorder.write_first_outcomes(tmp_path / "rollouts")
    for name in ("success.png", "failure.png"):
        with Image.open(tmp_path / "rollouts" / name) as image:
            assert image.height > 120 and image.width > 4 * image.height
        assert (tmp_path / "rollouts" / name).stat().st_size <= MAX_BYTES
    with Image.open(tmp_path / "strip.png") as image:
        assert image.width > 4 * 240 and image.height > 2 * 180
    assert {path.name for path in (tmp_path / "videos").iterdir()} == {
        "room-8-big-tree-target.mp4", "room-9-big-tree-target.mp4", "room-10-big-tree-neither.mp4",
    }  # fmt: skip
    with av.open(str(tmp_path / "videos" / "room-8-big-tree-target.mp4")) as video:
        assert len(list(video.decode(video=0))) == 3
