"""docs/reliability.md tells the numbers of the crash matrix as they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def matrix() -> Any:
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "ci" / "matrix.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.root
def test_the_page_counts_the_faults_on_memory(matrix: Any) -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = {}
    for line in page.partition("| operation |")[2].partition("\n\n")[0].splitlines()[2:]:
        name, faults, *_ = [cell.strip(" *") for cell in line.strip("|").split("|")]
        rows[name] = faults
    counted = {}
    for name in matrix.operations():
        number = matrix.counted(matrix.MemorySuite(), f"test_faults_in_{name}")
        counted[name.replace("_", " ")] = f"{number:,}"
    total = sum(int(number) for number in counted.values())
    assert rows == {**counted, "in all": f"{total:,}"}
