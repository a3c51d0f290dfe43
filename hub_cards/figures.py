"""Small figures for cards: SVG inside the card's own text, so that a repository holds no other file for them."""

import base64
import math
from collections.abc import Sequence
from html import escape

from .facts import Evaluation

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 20, 40
COLORS = ("#2a6fdb", "#d1495b", "#3c8d53", "#8f5bb5", "#c98a1b", "#4b5563")
POINTS = 160  # of a curve, at most
Points = Sequence[tuple[int, float]]


def inline(svg: str, alt: str) -> str:
    """The figure as an image in Markdown."""
    return f"![{alt}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def loss_curves(curves: dict[str, Points]) -> str:
    """Losses by step on a logarithmic scale, each point the mean of its stretch of steps."""
    thinned = {name: thin(points) for name, points in curves.items()}
    values = [value for points in thinned.values() for _, value in points if value > 0]
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a loss of the run is not finite, so its curve cannot be drawn: publish an earlier checkpoint")
    low, high = math.log10(min(values)), math.log10(max(values))
    high = high if high > low else low + 1
    last = max(step for points in thinned.values() for step, _ in points)

    def place(step: int, value: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, last)
        down = TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(value)) / (high - low)
        return f"{across:.1f},{down:.1f}"

    lines = axes(low, high, last)
    for number, (name, points) in enumerate(thinned.items()):
        color = COLORS[number % len(COLORS)]
        path = " ".join(place(step, value) for step, value in points if value > 0)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        lines.append(text(WIDTH - RIGHT + 8, TOP + 12 + 16 * number, name, "start", color))
    return frame(lines, HEIGHT)


def thin(points: Points) -> list[tuple[int, float]]:
    size = -(-len(points) // POINTS)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in stretches]


def axes(low: float, high: float, last: int) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    lines = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#888"/>']
    for share in (0, 0.5, 1):
        value = 10 ** (high - share * (high - low))
        lines.append(text(LEFT - 6, TOP + 4 + share * (bottom - TOP), f"{value:.3g}", "end"))
        lines.append(text(LEFT + share * (right - LEFT), bottom + 16, f"{share * last:,.0f}", "middle"))
    lines.append(text((LEFT + right) / 2, bottom + 32, "step", "middle"))
    return lines


def success_rates(evaluations: Sequence[Evaluation]) -> str:
    """A bar for each suite, with its 95 % interval."""
    height = 28 * len(evaluations) + 16
    lines = []
    for number, entry in enumerate(evaluations):
        top = 8 + 28 * number
        low, high = (180 + 380 * end for end in entry.interval)
        lines.append(text(172, top + 15, entry.suite, "end"))
        lines.append(f'<rect x="180" y="{top}" width="{380 * entry.rate:.1f}" height="20" fill="{COLORS[0]}"/>')
        lines.append(f'<path d="M{low:.1f} {top + 10}H{high:.1f}" stroke="#111" stroke-width="2"/>')
        lines.append(text(570, top + 15, f"{entry.rate:.1%}", "start"))
    return frame(lines, height)


def text(x: float, y: float, words: str, anchor: str, color: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(words)}</text>'


def frame(lines: list[str], height: int) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
    style = 'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    return head + style + "".join(lines) + "</svg>"
