"""The pictures of docs/, written by hand: no timestamps, fixed decimals, so that the same figures give the same bytes.

Each carries its own background, light or dark by the reader's preference, so that it is legible wherever it is shown.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from html import escape

from figures_inputs import RMS_RATIO_MAX, BadInput, Output

WIDTH, MARGIN = 880, 20
BACKENDS = ("host-f32", "cuda-f32", "cuda-bf16")
# Ratios beyond this are drawn at the edge, as a triangle with the largest.
RATIO_END = 2.3

LIGHT = {
    "card": "#ffffff", "band": "#f4f6f8", "text": "#1f2328", "muted": "#59636e", "grid": "#d8dde3", "line": "#59636e",
    "bad": "#b3261e", "c0": "#00795c", "c1": "#0065b3", "c2": "#c24e00",
}  # fmt: skip
DARK = {
    "card": "#0d1117", "band": "#161b22", "text": "#e6edf3", "muted": "#9198a1", "grid": "#30363d", "line": "#9198a1",
    "bad": "#ff7b72", "c0": "#3fc59a", "c1": "#58b2ff", "c2": "#ff9e57",
}  # fmt: skip


def error_ratios(outputs: Sequence[Output]) -> str:
    """A strip an op and backend, then one a tap of the whole model: how large our error is beside PyTorch's."""
    gated = [output for output in outputs if output.rule == "gate"]
    backends = ordered_backends(gated)
    ops = sorted({output.op for output in gated})
    taps = [output for output in gated if (output.op, output.mode) == ("gpt", "injected")]
    tap_names = list(dict.fromkeys(output.name for output in taps))
    scale = Scale(200, WIDTH - MARGIN - 66, 0.0, RATIO_END)

    body, y = heading("Error against the float64 truth, ours over PyTorch's", f"1.0 is as accurate as PyTorch in the same dtype; above {RMS_RATIO_MAX} fails", 34)
    body += legend(backends, y + 24)
    y += 58
    body += section(f"Every output of every op ({len(gated)}; the stroke is the median)", y)
    top = y = y + 28
    lane = 12
    for index, op in enumerate(ops):
        height = lane * len(backends) + 8
        body += band(index, y, height) + [text(190, y + height / 2 + 4, op, "t end")]
        for row, backend in enumerate(backends):
            strip = [output for output in gated if (output.op, output.backend) == (op, backend)]
            body += dots(strip, BACKENDS.index(backend), scale, y + 4 + lane * (row + 0.5), 3.2)
            body += median_stroke(strip, scale, y + 4 + lane * (row + 0.5))
        y += height
    body += ratio_axis(scale, top, y)
    y += 62
    body += section("Every tap of the model, each fed PyTorch's own inputs: where an error begins", y)
    top = y = y + 28
    for index, name in enumerate(tap_names):
        height = 6 * len(backends) + 4
        body += band(index, y, height) + [text(190, y + height / 2 + 4, name, "s end")]
        for row, backend in enumerate(backends):
            strip = [output for output in taps if (output.name, output.backend) == (name, backend)]
            body += dots(strip, BACKENDS.index(backend), scale, y + 2 + 6 * (row + 0.5), 2.8)
        y += height
    body += ratio_axis(scale, top, y)
    return document(y + 40, "Error ratios by op, tap and backend", body)


def significant(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


class Scale:
    """Values to pixels."""

    def __init__(self, start: float, end: float, low: float, high: float) -> None:
        self.start, self.end, self.low, self.high = start, end, low, high

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ordered_backends(outputs: Iterable[Output]) -> list[str]:
    """Those that there are, the order and so the colours fixed."""
    found = {output.backend for output in outputs}
    unknown = sorted(found.difference(BACKENDS))
    if unknown:
        raise BadInput(f"backends without a colour: {', '.join(unknown)}")
    return [backend for backend in BACKENDS if backend in found]


def dots(strip: Sequence[Output], colour: int, scale: Scale, y: float, radius: float) -> list[str]:
    """A dot an output, a red cross where it failed; those off the scale are one triangle at the edge, with the largest ratio."""
    shown = [(output.ratio, output.passed) for output in strip if output.ratio is not None and output.ratio <= RATIO_END]
    parts = [f'<circle class="f-c{colour}" opacity="0.6" cx="{scale(at):.1f}" cy="{y:.1f}" r="{radius}"/>' for at, passed in shown if passed]
    parts += [cross(scale(at), y, radius + 1) for at, passed in shown if not passed]
    beyond = [math.inf if output.ratio is None else output.ratio for output in strip if output.ratio is None or output.ratio > RATIO_END]
    if beyond:
        x = scale.end
        figure = "not finite" if math.inf in beyond else significant(max(beyond))
        parts.append(f'<path class="f-bad" d="M{x - 7:.1f} {y - 4.5:.1f}L{x:.1f} {y:.1f}L{x - 7:.1f} {y + 4.5:.1f}Z"/>')
        parts.append(text(x + 4, y + 4, figure, "s bad"))
    return parts


def cross(x: float, y: float, arm: float) -> str:
    corners = f"M{x - arm:.1f} {y - arm:.1f}L{x + arm:.1f} {y + arm:.1f}M{x - arm:.1f} {y + arm:.1f}L{x + arm:.1f} {y - arm:.1f}"
    return f'<path stroke-width="2" class="k-bad" d="{corners}"/>'


def median_stroke(strip: Sequence[Output], scale: Scale, y: float) -> list[str]:
    ratios = [RATIO_END if output.ratio is None else min(output.ratio, RATIO_END) for output in strip]
    if not ratios:
        return []
    return [f'<path class="k-text" stroke-width="2" d="M{scale(statistics.median(ratios)):.1f} {y - 5:.1f}v10"/>']


def legend(backends: Sequence[str], y: float) -> list[str]:
    parts, x = [], float(MARGIN + 6)
    for backend in backends:
        parts += [f'<circle class="f-c{BACKENDS.index(backend)}" cx="{x:.1f}" cy="{y - 4:.1f}" r="5"/>', text(x + 11, y, backend, "t")]
        x += 34 + 7.5 * len(backend)
    return parts + [cross(x, y - 4, 4.2), text(x + 11, y, "failed", "t")]


def ratio_axis(scale: Scale, top: float, bottom: float) -> list[str]:
    """Grid, the line at the reference, the line at the limit."""
    parts = [text((scale.start + scale.end) / 2, bottom + 32, "error ratio", "s mid")]
    for value in (0.0, 0.5, 1.0, 1.5, 2.0):
        x = scale(value)
        kind = "k-bad" if value == RMS_RATIO_MAX else "k-line" if value == 1.0 else "k-grid"
        dashes = ' stroke-dasharray="5 3"' if value == RMS_RATIO_MAX else ""
        parts.append(f'<path class="{kind}"{dashes} d="M{x:.1f} {top:.1f}V{bottom + 4:.1f}"/>')
        parts.append(text(x, bottom + 17, f"{value:.1f}", "s mid"))
    parts += [text(scale(1.0), top - 6, "PyTorch", "s mid"), text(scale(RMS_RATIO_MAX), top - 6, "limit", "s mid bad")]
    return parts


def heading(title: str, subtitle: str, y: float) -> tuple[list[str], float]:
    return [text(MARGIN, y, title, "h"), text(MARGIN, y + 21, subtitle, "t m")], y + 21


def section(title: str, y: float) -> list[str]:
    return [text(MARGIN, y, title, "t b")]


def band(index: int, y: float, height: float) -> list[str]:
    """Every second row has a ground, to lead the eye; the grid is drawn over it."""
    if index % 2:
        return []
    return [f'<rect class="f-band" x="{MARGIN}" y="{y:.1f}" width="{WIDTH - 2 * MARGIN}" height="{height:.1f}"/>']


def text(x: float, y: float, words: str, classes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(words)}</text>'


def document(height: float, title: str, body: Sequence[str]) -> str:
    """Grounds first, then grids, then all else: a grid line never crosses a dot or a word."""
    layer = {'<rect class="f-band"': 0, '<path class="k-grid"': 1, '<path class="k-line"': 1, '<path class="k-bad"': 1}
    drawn = sorted(body, key=lambda part: next((depth for start, depth in layer.items() if part.startswith(start)), 2))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{TYPE}{colours(LIGHT)}@media (prefers-color-scheme: dark) {{{colours(DARK)}}}</style>",
        f'<rect class="f-card" width="{WIDTH}" height="{height:.0f}" rx="8"/>',
        *drawn,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


TYPE = (
    'text{font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}'
    ".h{font-size:17px;font-weight:600}.t{font-size:13px}.s{font-size:11.5px}.b{font-weight:600}"
    ".end{text-anchor:end}.mid{text-anchor:middle}path{fill:none}"
)


def colours(palette: dict[str, str]) -> str:
    fills = "".join(f".f-{name}{{fill:{value}}}.k-{name}{{stroke:{value}}}" for name, value in palette.items())
    words = {"text": "text", ".m,.s": "muted", ".bad": "bad"}
    return "".join(f"{selector}{{fill:{palette[name]}}}" for selector, name in words.items()) + fills
