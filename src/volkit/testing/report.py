"""What a check found, row by row, for people and for machines: a table, JSON, JUnit."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final, Literal

from attrs import asdict, frozen

Status = Literal["passed", "failed", "advice", "skipped"]

FORMATS: Final = ("table", "json", "junit")
_STYLES: Final = {"passed": "green", "failed": "bold red", "advice": "yellow", "skipped": "dim"}


@frozen(kw_only=True)
class Outcome:
    """One thing that was checked: `title` says it in a sentence, `detail` what was seen instead, or why it was
    skipped. "advice" is a failure that breaks no rule. `seconds` is how long it took.
    """

    id: str
    title: str
    status: Status
    detail: str = ""
    source: str = ""
    seconds: float = 0.0


def failed(outcomes: Sequence[Outcome]) -> bool:
    """Did anything fail?"""
    return any(one.status == "failed" for one in outcomes)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Such as "40 passed, 2 failed, 7 skipped"."""
    counts = Counter[str](one.status for one in outcomes)
    return (
        ", ".join(f"{counts[status]} {status}" for status in _STYLES if counts[status]) or "nothing checked"
    )


def write(outcomes: Sequence[Outcome], form: str, about: str, output: str = "") -> None:
    """Write the report on `about` in one of FORMATS to the file `output`, or to stdout."""
    if not output:
        _write(outcomes, form, about, sys.stdout)
        return
    with Path(output).open("w", encoding="utf-8") as file:
        _write(outcomes, form, about, file)


def _write(outcomes: Sequence[Outcome], form: str, about: str, file: IO[str]) -> None:
    {"table": _table, "json": _json, "junit": _junit}[form](outcomes, about, file)


def _json(outcomes: Sequence[Outcome], about: str, file: IO[str]) -> None:
    found = {"about": about, "summary": summary(outcomes), "outcomes": [asdict(one) for one in outcomes]}
    json.dump(found, file, indent=2)
    file.write("\n")


def _junit(outcomes: Sequence[Outcome], about: str, file: IO[str]) -> None:
    from xml.etree import ElementTree

    counts = Counter(one.status for one in outcomes)
    numbers = {"tests": len(outcomes), "failures": counts["failed"], "skipped": counts["skipped"]}
    suite = ElementTree.Element(
        "testsuite", {"name": f"volkit check {about}", **{k: str(v) for k, v in numbers.items()}}
    )
    for one in outcomes:
        row = {"classname": f"volkit.{about}", "name": one.id, "time": f"{one.seconds:.3f}"}
        case = ElementTree.SubElement(suite, "testcase", row)
        if one.status == "failed":
            ElementTree.SubElement(
                case, "failure", {"message": one.detail}
            ).text = f"{one.title}\n{one.source}"
        elif one.status == "skipped":
            ElementTree.SubElement(case, "skipped", {"message": one.detail})
        elif one.status == "advice":
            ElementTree.SubElement(case, "system-out").text = one.detail
    ElementTree.indent(suite)
    file.write(
        '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
    )


def _table(outcomes: Sequence[Outcome], about: str, file: IO[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", about, "Seen"):
        table.add_column(heading, overflow="fold")
    for one in outcomes:
        detail = (
            f"{one.detail} ({one.source})"
            if one.source and one.status != "skipped" and one.detail
            else one.detail
        )
        table.add_row(Text(one.status, style=_STYLES[one.status]), one.title, Text(detail))
    console = Console(file=file, width=None if file.isatty() else 140)
    console.print(table)
    console.print(summary(outcomes), style=_STYLES["failed" if failed(outcomes) else "passed"])
