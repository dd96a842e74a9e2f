"""The distributions of the workspace agree with each other (ci/install_alone.sh installs each for itself)."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CORE: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MEMBERS = [path.parent.relative_to(ROOT) for path in sorted(ROOT.glob("[ap]*/*/pyproject.toml"))]


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_a_member_has_the_cores_version_and_requires_it(member: Path) -> None:
    project = tomllib.loads((ROOT / member / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = CORE["project"]["version"]
    assert str(member) in CORE["tool"]["uv"]["workspace"]["members"]
    assert project["version"] == version
    assert project["requires-python"] == CORE["project"]["requires-python"]
    assert f"volkit-sdk=={version}" in project["dependencies"]
    package = project["name"].replace("-", "_")
    assert (ROOT / member / "src" / package / "py.typed").exists()
    assert package in CORE["tool"]["importlinter"]["root_packages"]


def test_the_installed_distributions_are_those_of_this_checkout() -> None:
    for name in ("volkit-sdk", *(f"volkit-{path.name.removeprefix('volkit-')}" for path in MEMBERS)):
        assert metadata.version(name) == CORE["project"]["version"], f"{name}: run `make venv`"


def test_the_changelog_is_built_for_this_version() -> None:
    assert CORE["tool"]["towncrier"]["version"] == CORE["project"]["version"]


def test_the_lock_names_versions_and_no_place() -> None:
    lines = (ROOT / "constraints/dev.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 50
    for line in lines:
        assert "==" in line
        assert "://" not in line
        assert not line.startswith("-")
