"""Drawing primitives: SVG elements as strings, a colour ramp, axis ticks, and matrices as tiny PNG images.

Nothing here knows what is drawn. Colours are CSS classes, so that one figure follows the light or dark page around it;
a figure saved on its own carries the same style sheet inside.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import escape

from tmerge_tui.engine.report.templates import asset

# dark to light, evenly spaced in lightness: reads the same for colour-blind eyes and in grey print
RAMP = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
_RGB = tuple(tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in RAMP)

SERIES = 6  # line colours .s0 to .s5 of assets/templates/figures.css


@dataclass(frozen=True)
class Figure:
    """One drawing. `title` is what a screen reader says; `name` is the file's."""

    name: str
    title: str
    width: float
    height: float
    body: str

    def _svg(self, attributes: str, head: str) -> str:
        return (
            f'<svg {attributes}class="fig" viewBox="0 0 {self.width:g} {self.height:g}" role="img" '
            f'width="{self.width:g}" height="{self.height:g}" aria-label="{escape(self.title)}">'
            f"<title>{escape(self.title)}</title>{head}{self.body}</svg>"
        )

    def inline(self) -> str:
        """For an HTML page that has figures.css."""
        return self._svg("", "")

    def standalone(self) -> str:
        """A whole file, with its style and background."""
        names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        return (
            self._svg(names, f'<style>{asset("figures.css")}</style><rect class="paper" width="100%" height="100%"/>')
            + "\n"
        )


def text(x: float, y: float, words: object, css: str = "", anchor: str = "start", turn: float = 0) -> str:
    rotate = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    name = f' class="{css}"' if css else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{rotate}>{escape(str(words))}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def rect(x: float, y: float, width: float, height: float, css: str = "", fill: str = "") -> str:
    look = f' class="{css}"' if css else f' fill="{fill}"'
    return f'<rect{look} x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def polyline(points: Sequence[tuple[float, float]], css: str, dash: str = "") -> str:
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline class="{css}"{style} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def marker(x: float, y: float, shape: str, css: str, hint: str = "") -> str:
    """A disc, square or diamond of about 9 pixels; `hint` shows on hovering."""
    title = f"<title>{escape(hint)}</title>" if hint else ""
    if shape == "disc":
        return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{title}</circle>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if shape == "diamond" else ""
    return f'<rect class="{css}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"{turn}>{title}</rect>'


def colour(share: float) -> tuple[int, int, int]:
    """RGB of the ramp at `share` in [0, 1]."""
    at = min(max(share, 0.0), 1.0) * (len(_RGB) - 1)
    i = min(int(at), len(_RGB) - 2)
    red, green, blue = (round(a + (at - i) * (b - a)) for a, b in zip(_RGB[i], _RGB[i + 1], strict=True))
    return red, green, blue


def cells(shares: Sequence[Sequence[float | None]], x: float, y: float, width: float, height: float) -> str:
    """A matrix of values in [0, 1] as one image, row 0 on top; None is transparent."""
    rows = b"".join(
        b"\0" + b"".join(bytes((*colour(v), 255)) if v is not None else b"\0\0\0\0" for v in row) for row in shares
    )
    data = base64.b64encode(_png(rows, len(shares[0]), len(shares))).decode("ascii")
    return (
        f'<image class="cells" style="image-rendering:pixelated" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
    )


def _png(rows: bytes, width: int, height: int) -> bytes:
    """8-bit RGBA; each row starts with its filter byte (RFC 2083)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, some `about` of them. Raises ValueError unless low < high."""
    if not low < high:
        raise ValueError(f"no range from {low} to {high}")
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def signed_tick(value: float) -> str:
    """A difference as an axis shows it, without trailing zeros."""
    return "0" if value == 0 else f"{value:+.6f}".rstrip("0").rstrip(".") if abs(value) >= 1e-5 else f"{value:+.1e}"
