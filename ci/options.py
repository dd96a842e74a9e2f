"""Writes the tables of settings and parameters into docs/backends/, out of the classes that declare them.

A table stands between `<!-- begin: settings of NAME -->` (or `parameters of NAME`) and `<!-- end -->`. With `--check`
nothing is written, and a table that is not current is an error.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import volkit
from volkit import options

PAGES = Path(__file__).parent.parent / "docs" / "backends"
BLOCK = re.compile(r"(<!-- begin: (settings|parameters) of (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(cls: type) -> str:
    """The Markdown table of an options class."""
    rows = [f"| `{one.key}` | {default(one)} | {text(one)} |" for one in options.declared(cls)]
    return "\n".join(["| Key | Default | |", "|---|---|---|", *rows])


def default(one: options.Option) -> str:
    value: Any = one.default
    if one.required:
        return "required"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value in ("", ()):
        return "none"
    return f"{value:g}" if isinstance(value, int | float) else str(getattr(value, "value", value))


def text(one: options.Option) -> str:
    marks = [word for word, true in (("secret", one.secret), ("can be changed later", one.mutable)) if true]
    told = f" ({', '.join(marks)})" if marks else ""
    sentence = f"{one.help[:1].upper()}{one.help[1:]}"
    return f"{sentence}{told}.".replace("|", "\\|")


def current(page: str) -> str:
    """The page with its tables as they are to be."""

    def block(found: re.Match[str]) -> str:
        backend = volkit.load_backend(found[3])
        return f"{found[1]}{table(getattr(backend, found[2]))}\n{found[4]}"

    return BLOCK.sub(block, page)


def main() -> int:
    stale = []
    for path in sorted(PAGES.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (wanted := current(page)) != page:
            stale.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(wanted, encoding="utf-8")
    if stale and "--check" in sys.argv[1:]:
        sys.stderr.write(f"not current: {', '.join(stale)}: run `python ci/options.py`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
