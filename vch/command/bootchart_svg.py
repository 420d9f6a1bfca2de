"""The chart of a start as a picture: a bar for each span, in the colour of its part."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vch.command.bootchart import Part, Span, totals

WIDTH, LABEL_WIDTH, ROW, TOP, MARGIN = 960, 190, 18, 44, 16  # pixels
BAR = 12  # height of a bar inside its row
VALUE_WIDTH = 70  # right of the longest bar, for its milliseconds
TICKS = 8  # lines at most
STEPS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 60000)
COLOURS = {
    Part.HOST: "#9aa0a6",
    Part.FIRMWARE: "#8d6e63",
    Part.KERNEL: "#c0504d",
    Part.RUNTIME: "#4472c4",
    Part.IMPORTS: "#6fa8dc",
    Part.MOUNTS: "#76933c",
    Part.LINK: "#8064a2",
    Part.DISKS: "#e0a030",
    Part.NETWORK: "#2e9c8f",
    Part.EXEC: "#d6589f",
    Part.OUTPUT: "#404040",
}


def svg(line: Sequence[Span], title: str) -> str:
    """SVG 1.1; the same chart gives the same text."""
    whole = max(line[-1].end, 0.001)
    scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH - MARGIN) / whole
    bottom = TOP + ROW * len(line)
    sums = totals(line)
    height = bottom + MARGIN + ROW * len(sums) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(MARGIN, 18, f"{title}: {whole * 1000:.0f} ms", 'font-size="14" font-weight="bold"'),
        *_grid(whole, scale, bottom),
        *(row for index, span in enumerate(line) for row in _row(span, scale, TOP + ROW * index)),
        *(row for index, (part, seconds) in enumerate(sums.items())
          for row in _legend(part, seconds, whole, bottom + MARGIN + ROW * index)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def tick_ms(whole_s: float) -> int:
    """Distance of the vertical lines: a round number that gives at most TICKS of them."""
    return next((step for step in STEPS_MS if whole_s * 1000 / step <= TICKS), STEPS_MS[-1])


def _grid(whole: float, scale: float, bottom: int) -> list[str]:
    step = tick_ms(whole)
    rows = []
    for at in range(0, int(whole * 1000) + 1, step):
        x = LABEL_WIDTH + at / 1000 * scale
        rows.append(f'<line x1="{x:.1f}" y1="{TOP - 4}" x2="{x:.1f}" y2="{bottom}" stroke="#dddddd"/>')
        rows.append(_text(x, TOP - 8, f"{at}", 'fill="#888888" text-anchor="middle"'))
    return rows


def _row(span: Span, scale: float, y: int) -> list[str]:
    x, wide = LABEL_WIDTH + span.start * scale, max(1.0, span.took * scale)
    return [
        _text(LABEL_WIDTH - 8, y + BAR - 2, span.name, 'text-anchor="end"'),
        f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{BAR}" fill="{COLOURS[span.part]}"/>',
        _text(x + wide + 4, y + BAR - 2, f"{span.took * 1000:.1f}", 'fill="#555555"'),
    ]


def _legend(part: Part, seconds: float, whole: float, y: int) -> list[str]:
    share = f"{part.value}: {seconds * 1000:.0f} ms, {seconds / whole:.0%}"
    return [f'<rect x="{LABEL_WIDTH}" y="{y}" width="{BAR}" height="{BAR}" fill="{COLOURS[part]}"/>',
            _text(LABEL_WIDTH + BAR + 6, y + BAR - 2, share)]


def _text(x: float, y: float, words: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}" {attributes}>{escape(words)}</text>'
