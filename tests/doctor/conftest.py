"""Nodes with real loop devices and FUSE file systems; nothing of them is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .world import Served, World, directory_world, loop_world


@pytest.fixture
def node(tmp_path: Path) -> Iterator[World]:
    """A node with the loop backend."""
    made = loop_world(tmp_path)
    yield made
    made.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A FUSE file system."""
    made = Served(tmp_path)
    yield made
    made.close()


@pytest.fixture
def share(tmp_path: Path, served: Served) -> Iterator[World]:
    """A node whose volumes are directories of a FUSE file system."""
    made = directory_world(tmp_path, served.path)
    yield made
    made.close()
