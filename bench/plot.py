"""CPU time per operation as an SVG: a group of bars for each workload, a bar for each target."""

from collections.abc import Iterator
from html import escape
from typing import Any

from bench.results import LIMIT

# Legible on white and on black; the background is left to the page.
_TEXT, _SERVER, _DATABASE = "#6e7781", "#3b82f6", "#e8893a"
_LEFT, _RIGHT, _TOP, _WIDTH = 330, 130, 74, 1000  # pixels; bars are drawn between left and right
_BAR, _PITCH, _GAP = 12, 15, 14


def svg(results: dict[str, Any]) -> str:
    """Returns the plot. The length of a bar is the ratio to the limit's CPU time; its label is in microseconds."""
    cells = {name: row for name, row in results["cells"].items() if results["workloads"][name]["main"]}
    longest = max(_multiple(row, target) for row in cells.values() for target in row)
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    bottom = _TOP + sum(_height(row) for row in cells.values())
    parts = [*_header(), *_axis(longest, scale, bottom)]
    top = _TOP
    for workload, row in cells.items():
        parts += _group(workload, row, top, scale)
        top += _height(row)
    size = f'width="{_WIDTH}" height="{bottom + 30}" viewBox="0 0 {_WIDTH} {bottom + 30}"'
    style = 'font-family="system-ui, sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"


def _height(row: dict[str, Any]) -> int:
    return len(row) * _PITCH + _GAP


def _multiple(row: dict[str, Any], target: str) -> float:
    return float(row[target]["cpu_us"]["median"] / row[LIMIT]["cpu_us"]["median"])


def _text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_TEXT}"{more}>{escape(words, quote=False)}</text>'
    )


def _box(x: float, y: float, width: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BAR}" fill="{color}"/>'


def _header() -> Iterator[str]:
    yield _text(16, 24, "CPU time per operation, as a multiple of the limit's", more=' font-size="16"')
    for x, color, words in ((16, _SERVER, "server"), (90, _DATABASE, "PostgreSQL")):
        yield _box(x, 38, 12, color)
        yield _text(x + 18, 48, words)
    yield _text(200, 48, "at the end of a bar: microseconds, median of the rounds")


def _axis(longest: float, scale: float, bottom: int) -> Iterator[str]:
    """Grid lines at whole multiples, at fewer of them if there are many."""
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 10_000) if longest / step <= 12)
    for number in range(int(longest / step) + 1):
        x = _LEFT + number * step * scale
        yield f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="{_TEXT}" stroke-opacity="0.3"/>'
        yield _text(x, bottom + 16, f"{number * step:g} x", "middle")


def _group(workload: str, row: dict[str, Any], top: float, scale: float) -> Iterator[str]:
    middle = top + len(row) * _PITCH / 2 + 3
    yield _text(16, middle, workload, more=' font-weight="600"')
    unit = scale / row[LIMIT]["cpu_us"]["median"]
    for number, (target, cell) in enumerate(row.items()):
        y = top + number * _PITCH
        server, database = _parts(cell, unit)
        yield _text(_LEFT - 8, y + 10, target, "end")
        yield _box(_LEFT, y, server, _SERVER)
        yield _box(_LEFT + server, y, database, _DATABASE)
        yield _text(_LEFT + server + database + 6, y + 10, f"{cell['cpu_us']['median']:,.0f}")


def _parts(cell: dict[str, Any], unit: float) -> tuple[float, float]:
    """Splits a bar in the proportion of its parts: their medians do not add up to that of the whole."""
    server, database = (cell[name]["median"] for name in ("server_us", "postgres_us"))
    whole = cell["cpu_us"]["median"] * unit
    return whole * server / (server + database), whole * database / (server + database)
