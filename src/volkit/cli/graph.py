"""A picture of who uses what: volume -> node -> pod, in SVG. Nothing but text, so that it opens anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape, quoteattr

from volkit.cli.volumes import rounded
from volkit.inventory import named_pods

if TYPE_CHECKING:
    from volkit.inventory import Inventory, Item

_ROW: Final = 34
_BOX: Final = (300, 26)
_COLUMNS: Final = (20, 420, 820)
_TOP: Final = 60
_HEADINGS: Final = ("volume", "node", "pod or container")
_COLOURS: Final = {
    "created": "#eceff1",
    "attached": "#e3f2fd",
    "staged": "#fff8e1",
    "published": "#e8f5e9",
    "node": "#ede7f6",
    "user": "#ffffff",
}
_LONGEST: Final = 40


def draw(inventory: Inventory) -> str:
    """The whole SVG document. Boxes have a tooltip with all that is known; a broken line is a node that has the volume
    attached and is not this one.
    """
    picture = _Picture()
    for item in inventory.volumes:
        volume = picture.box(0, item.id, _called(item), item.state, _told(item))
        here = inventory.node if item.staged or item.published else ""
        for node in dict.fromkeys((*item.attached, *filter(None, [here]))):
            place = picture.box(1, node, node, "node", f"node {node}")
            picture.line(volume, place, broken=node != here)
        for user in named_pods(item):
            used = picture.box(
                2, f"{user.kind}/{user.uid}/{user.id}", user.shown, "user", _user(user.path, user.uid)
            )
            picture.line(picture.box(1, here, here, "node", f"node {here}"), used)
    return picture.text()


def _called(item: Item) -> str:
    size = f", {rounded(item.size)}" if item.size else ""
    return f"{item.name or item.id}{size}"


def _told(item: Item) -> str:
    lines = [f"id {item.id}", f"state {item.state}", *item.unfinished]
    if item.used is not None:
        lines.append(f"used {rounded(item.used)}")
    lines += [f"staged at {item.staged}"] if item.staged else []
    return "\n".join((*lines, *(f"published at {path}" for path in item.published)))


def _user(path: str, uid: str) -> str:
    return "\n".join(filter(None, (f"uid {uid}" if uid else "", path)))


class _Picture:
    """Boxes in three columns, one below the other in the order in which they come, and the lines between them."""

    def __init__(self) -> None:
        self._boxes: dict[tuple[int, str], tuple[int, int]] = {}
        self._rows = [0, 0, 0]
        self._shapes: list[str] = []
        self._lines: dict[tuple[tuple[int, int], tuple[int, int]], bool] = {}

    def box(self, column: int, key: str, label: str, style: str, told: str) -> tuple[int, int]:
        """The place of a box, which is made where it is not there yet."""
        if (column, key) in self._boxes:
            return self._boxes[column, key]
        place = (_COLUMNS[column], _TOP + self._rows[column] * _ROW)
        self._boxes[column, key] = place
        self._rows[column] += 1
        self._shapes.append(_box(place, label, style, told))
        return place

    def line(self, begin: tuple[int, int], end: tuple[int, int], *, broken: bool = False) -> None:
        self._lines[begin, end] = broken

    def text(self) -> str:
        width, height = _COLUMNS[2] + _BOX[0] + 20, _TOP + max(1, *self._rows) * _ROW + 10
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            'font-family="sans-serif" font-size="12">'
        )
        white = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        headings = (
            f'<text x="{x}" y="36" font-size="15" font-weight="bold">{name}</text>'
            for x, name in zip(_COLUMNS, _HEADINGS, strict=True)
        )
        lines = (_curve(begin, end, broken) for (begin, end), broken in self._lines.items())
        return "\n".join((head, white, *headings, *lines, *self._shapes, "</svg>", ""))


def _box(place: tuple[int, int], label: str, style: str, told: str) -> str:
    x, y = place
    tooltip = f"{label}\n{told}"
    short = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
    width, height = _BOX
    return _element(
        "g",
        f"<title>{escape(tooltip)}</title>",
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill={quoteattr(_COLOURS[style])} '
        'stroke="#607d8b"/>',
        f'<text x="{x + 8}" y="{y + 17}">{escape(short)}</text>',
    )


def _element(name: str, *inside: str) -> str:
    return f"<{name}>{''.join(inside)}</{name}>"


def _curve(begin: tuple[int, int], end: tuple[int, int], broken: bool) -> str:
    x1, y1 = begin[0] + _BOX[0], begin[1] + _BOX[1] // 2
    x2, y2 = end[0], end[1] + _BOX[1] // 2
    half = (x1 + x2) // 2
    dashes = ' stroke-dasharray="5 4"' if broken else ""
    return f'<path d="M{x1} {y1} C{half} {y1} {half} {y2} {x2} {y2}" fill="none" stroke="#90a4ae"{dashes}/>'
