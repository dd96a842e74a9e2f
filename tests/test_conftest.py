"""The repository's own rules (conftest.py) fail a run that skips or leaves something behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(tmp_path: Path, test: str, *, ci: bool, expected: str = "") -> subprocess.CompletedProcess[str]:
    """Run one test file under a copy of the rules, in a run of pytest of its own."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "conftest.py").read_bytes())
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci/expected-skips.txt").write_text(expected, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    needs: x\n    root: x\n    sanity: x\n", encoding="utf-8"
    )
    (tmp_path / "test_it.py").write_text(test, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "PYTEST"))}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            f"--basetemp={tmp_path}/tmp",
            "test_it.py",
        ],
        cwd=tmp_path,
        env=environment
        | ({"CI": "true"} if ci else {})
        | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # starts sooner
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


SKIPS = "import pytest\n\ndef test_a():\n    pytest.skip('no array here')\n\ndef test_b():\n    pass\n"
NEEDS = "import pytest\n\n@pytest.mark.needs('mkfs.none')\ndef test_a():\n    assert False\n"
MOUNTS = """
import subprocess

def test_a(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "volkit-left", tmp_path], check=True)
"""
ATTACHES = """
import subprocess

def test_a(tmp_path):
    (tmp_path / "image").write_bytes(bytes(1 << 20))
    print(subprocess.run(["losetup", "--find", "--show", tmp_path / "image"], check=True))
"""


@pytest.mark.parametrize(
    "expected", ["", "test_it.py::test_b: no array here\n", "test_it.py::test_a: another reason\n"]
)
def test_an_unexpected_skip_fails_on_ci(tmp_path: Path, expected: str) -> None:
    result = run(tmp_path, SKIPS, ci=True, expected=expected)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "unexpected skip: test_it.py::test_a: no array here" in result.stdout
    assert "1 passed, 1 skipped" in result.stdout


def test_an_expected_skip_is_no_fault_on_ci(tmp_path: Path) -> None:
    result = run(tmp_path, SKIPS, ci=True, expected="# why\n\ntest_it.py::*_a: no * here\n")
    assert "unexpected skip" not in result.stdout
    assert "1 passed, 1 skipped" in result.stdout


def test_a_skip_elsewhere_is_no_fault(tmp_path: Path) -> None:
    result = run(tmp_path, SKIPS, ci=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_expected_skip_without_a_reason_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, SKIPS, ci=True, expected="test_it.py::test_a\n")
    assert result.returncode != 0
    assert "has no reason" in result.stdout + result.stderr


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    result = run(tmp_path, NEEDS, ci=True)
    assert result.returncode == 1
    assert "unexpected skip: test_it.py::test_a: mkfs.none is missing" in result.stdout


@pytest.mark.root
@pytest.mark.parametrize("ci", [True, False])
def test_a_mount_left_behind_fails_the_run(tmp_path: Path, ci: bool) -> None:
    try:
        result = run(tmp_path, MOUNTS, ci=ci)
    finally:
        subprocess.run(["umount", tmp_path / "tmp/test_a0"], check=True)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"left behind: {tmp_path}/tmp/test_a0 (volkit-left)" in result.stdout


@pytest.mark.root
def test_a_loop_device_left_behind_fails_the_run(tmp_path: Path) -> None:
    image = tmp_path / "tmp/test_a0/image"
    try:
        result = run(tmp_path, ATTACHES, ci=False)
    finally:
        attached = subprocess.run(["losetup", "-j", image], capture_output=True, text=True, check=True).stdout
        for line in attached.splitlines():
            subprocess.run(["losetup", "-d", line.partition(":")[0]], check=True)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"({image})" in result.stdout
