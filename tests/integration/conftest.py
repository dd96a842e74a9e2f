"""Drivers for the tests; whatever a test leaves of them, they are killed and their mounts and devices go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .driver import Driver, sweep
from .orchestrator import Orchestrator

Drivers = Callable[..., Driver]


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Drivers]:
    """Makes drivers that are not started yet, each in a directory of its own below the test's."""
    made: list[Driver] = []

    def make(name: str = "driver", **options: Any) -> Driver:
        made.append(Driver(tmp_path / name, **options))
        return made[-1]

    yield make
    for one in made:
        one.end()
    sweep(tmp_path)


@pytest.fixture
def driver(drivers: Drivers) -> Driver:
    """A driver that serves."""
    return drivers().start()


@pytest.fixture
def orchestrator(driver: Driver) -> Orchestrator:
    """Calls `driver`, once each."""
    return Orchestrator(driver.client, driver.home)
