"""The pytest plugin, in a run of its own: nothing is left out unseen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUITE = """
from volkit.testing import BackendSuite, Storage
from volkit.testing.memory import MemoryBackend, memory_settings
from volkit.testing.witness import OwnListing
import pytest

class TestSuite(BackendSuite):
    backend = MemoryBackend
    def storage(self, directory):
        settings = memory_settings(root=directory)
        return Storage(settings=settings, witness=OwnListing(MemoryBackend.controller(settings)), outlives=False)
"""


def run(directory: Path, more: str, *arguments: str) -> tuple[int, str]:
    (directory / "test_it.py").write_text(SUITE + more)
    command = [sys.executable, "-m", "pytest", "-q", "-rA", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_case_that_is_deleted_fails_the_whole_class(tmp_path: Path) -> None:
    code, shown = run(tmp_path, "    test_clone = None\n")
    assert code != 0
    assert "TestSuite.test_clone is a case of the suite: mark what replaces it xfail" in shown
    assert "passed" not in shown


def test_the_plugin_runs_cases_and_an_expected_failure(tmp_path: Path) -> None:
    mark = "@pytest.mark.xfail(reason='ticket 12', strict=True)"
    more = f"    {mark}\n    def test_clone(self, volkit_kit): assert False\n"
    code, shown = run(tmp_path, more, "-k", "test_clone or topology or limits", "--volkit-faults=full")
    assert code == 0, shown
    assert "1 passed, 1 skipped" in shown
    assert "1 xfailed" in shown
    assert "the backend has no ReportsTopology" in shown
