"""docs/reliability.md tells the numbers of the crash matrix as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def matrix() -> Any:
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "ci" / "matrix.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
def test_the_page_counts_the_faults(matrix: Any) -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows: dict[str, list[int]] = {}
    for line in page.partition("| operation |")[2].partition("\n\n")[0].splitlines()[2:]:
        name, *numbers = [cell.strip(" *") for cell in line.strip("|").split("|")]
        rows[name] = [int(number.replace(",", "").replace("–", "0")) for number in numbers]
    total = rows.pop("in all")
    assert total == [sum(column) for column in zip(*rows.values(), strict=True)]
    assert list(rows) == [name.replace("_", " ") for name in matrix.SCENARIOS]
    loop = matrix.loop_suite()
    for name in matrix.SCENARIOS:
        memory, on_loop, in_a_file, killed = rows[name.replace("_", " ")]
        assert on_loop == (matrix.counted(loop, name) or 0), name
        # the rest depends on the version of Python, which calls other functions on the way, and on the kernel's
        for told, suite, kills in (
            (memory, matrix.MemorySuite(), False),
            (in_a_file, matrix.FileSuite(), True),
            (killed, loop, True),
        ):
            assert (matrix.counted(suite, name, kills=kills) or 0) == pytest.approx(told, rel=0.3), name
