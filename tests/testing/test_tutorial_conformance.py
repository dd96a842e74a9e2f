"""The backends of the tutorial and of the README pass the conformance suite, as they stand on the page."""

from __future__ import annotations

import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from volkit.testing import BackendSuite, Storage, Witness

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def page(name: str) -> Any:
    """The module that the first Python block of a page makes."""
    block = BLOCK.search((ROOT / name).read_text())
    assert block
    module = types.ModuleType(f"page_{Path(name).stem}".replace("-", "_"))
    sys.modules[module.__name__] = module
    exec(compile(block[1], name, "exec"), module.__dict__)
    return module


TUTORIAL, README = page("docs/tutorial-backend.md"), page("README.md")


class Directories(Witness):
    def __init__(self, root: Path) -> None:
        self.root = root

    def volumes(self) -> list[str]:
        return os.listdir(self.root)


@pytest.mark.root
class TestTutorial(BackendSuite):
    sampled = True
    backend = TUTORIAL.Acme

    def storage(self, directory: Path) -> Storage:
        return Storage(settings=TUTORIAL.Settings(root=directory), witness=Directories(directory))


@pytest.mark.root
class TestReadme(BackendSuite):
    sampled = True
    backend = README.Acme

    def storage(self, directory: Path) -> Storage:
        return Storage(settings=README.Settings(root=directory), witness=Directories(directory))
