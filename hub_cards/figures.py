"""Figures of cards as PNG files: loss curves, success rates and image strips of rollouts.

The same facts give the same bytes, so that publishing an unchanged policy makes no commit.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from .facts import CardError, Evaluation, RolloutImages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#2a6fdb", "#d1495b", "#3c8d53", "#8f5bb5", "#c98a1b", "#4b5563")
POINTS = 160  # maximum number of points of a curve
DPI = 120

STRIP_WIDTHS = (1200, 1000, 800, 640, 480, 320)  # pixels; the first one whose file is small enough is used
STRIP_BYTES = 150_000
TITLE_HEIGHT, MARGIN = 24, 8  # pixels

Curve = Sequence[tuple[int, float]]


def loss_curves(curves: dict[str, Curve]) -> bytes:
    """Return a PNG of losses by step."""
    return to_png(draw_loss_curves(curves))


def success_rates(evaluations: Sequence[Evaluation]) -> bytes:
    """Return a PNG of the success rate of each evaluation."""
    return to_png(draw_success_rates(evaluations))


def draw_loss_curves(curves: dict[str, Curve]) -> "Figure":
    """Draw losses by step on a logarithmic scale. Each point is the mean of a window of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.0), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        points = average_windows(curve)
        if not all(math.isfinite(value) for _, value in points):
            raise CardError(f"the loss {name} is not finite: publish an earlier checkpoint")
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=COLORS[number % len(COLORS)], linewidth=1.2, label=plain_text(name))
    if any(value > 0 for curve in curves.values() for _, value in curve):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def average_windows(curve: Curve) -> list[tuple[int, float]]:
    """Return at most POINTS points: the last step and the mean value of each window of steps."""
    size = -(-len(curve) // POINTS)
    windows = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(window[-1][0], sum(value for _, value in window) / len(window)) for window in windows]


def draw_success_rates(evaluations: Sequence[Evaluation]) -> "Figure":
    """Draw a bar with its 95 % interval for each evaluation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.7 + 0.35 * len(evaluations)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(evaluations))
    rates = [entry.rate for entry in evaluations]
    below = [max(0.0, entry.rate - entry.interval[0]) for entry in evaluations]
    above = [max(0.0, entry.interval[1] - entry.rate) for entry in evaluations]
    axes.barh(rows, rates, height=0.6, color=COLORS[0], xerr=[below, above], ecolor="#111111", capsize=3)
    for row, entry in zip(rows, evaluations, strict=True):
        axes.text(1.03, row, f"{entry.rate:.1%}", va="center", fontsize=9)
    axes.set_yticks(rows, [plain_text(entry.suite) for entry in evaluations], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("success rate")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plain_text(text: str) -> str:
    """Escape dollar signs, which matplotlib would read as formulas."""
    return text.replace("$", r"\$")


def to_png(figure: "Figure") -> bytes:
    """Render with Agg, without the metadata that names matplotlib's version."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return quantize(Image.open(buffer))


def quantize(image: Image.Image) -> bytes:
    """Encode as a PNG with a palette of 256 colors, which is several times smaller."""
    buffer = io.BytesIO()
    image.convert("RGB").quantize(256).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def rollout_strips(rollouts: RolloutImages) -> bytes:
    """Return a PNG of the strips of the successful and the failed rollout, as wide as STRIP_BYTES allows."""
    strips = {"success": rollouts.success, "failure": rollouts.failure}
    images = {
        title: Image.open(io.BytesIO(content)).convert("RGB")
        for title, content in strips.items()
        if content is not None
    }
    for width in STRIP_WIDTHS:
        content = quantize(stack_strips(images, width))
        if len(content) <= STRIP_BYTES:
            return content
    raise CardError(
        f"the rollout strips take more than {STRIP_BYTES:,} bytes at {STRIP_WIDTHS[-1]} pixels width: delete the "
        "images in the report's rollouts/ folder, or replace them by shorter strips"
    )


def stack_strips(images: dict[str, Image.Image], width: int) -> Image.Image:
    """Return the images, at most `width` pixels wide, one below the other with their titles."""
    scale = min(1.0, width / max(image.width for image in images.values()))
    resized = {
        title: image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        for title, image in images.items()
    }
    size = (
        max(image.width for image in resized.values()) + 2 * MARGIN,
        sum(TITLE_HEIGHT + image.height + MARGIN for image in resized.values()),
    )
    canvas, top = Image.new("RGB", size, "white"), 0
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for title, image in resized.items():
        draw.text((MARGIN, top + 3), title, fill="black", font=font)
        canvas.paste(image, (MARGIN, top + TITLE_HEIGHT))
        top += TITLE_HEIGHT + image.height + MARGIN
    return canvas
