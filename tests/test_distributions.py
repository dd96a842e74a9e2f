"""The distributions of the workspace agree with each other (ci/install_alone.sh installs each for itself)."""

from __future__ import annotations

import shutil
import subprocess
import sys
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


def test_every_distribution_has_the_licence_and_says_who_it_is() -> None:
    licence = (ROOT / "LICENSE").read_bytes()
    for member in MEMBERS:
        project = tomllib.loads((ROOT / member / "pyproject.toml").read_text(encoding="utf-8"))
        assert (ROOT / member / "LICENSE").read_bytes() == licence, member
        assert project["project"]["license-files"] == ["LICENSE"], member
        assert project["project"]["readme"] == "README.md", member
        assert "Typing :: Typed" in project["project"]["classifiers"], member
        assert project["build-system"] == CORE["build-system"], member


def test_the_next_version_reaches_all_of_them_and_its_changelog_is_written(tmp_path: Path) -> None:
    files = ["pyproject.toml", "src/volkit/__init__.py", "ci/version.sh", "CHANGELOG.md"]
    files += [f"{member}/pyproject.toml" for member in MEMBERS]
    for name in (*files, *(f"changelog.d/{path.name}" for path in (ROOT / "changelog.d").iterdir())):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    old = CORE["project"]["version"]
    subprocess.run(["ci/version.sh", "98.7.6"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    for member in (Path(), *MEMBERS):
        text = (tmp_path / member / "pyproject.toml").read_text(encoding="utf-8")
        assert f'version = "{old}"' not in text
        assert f"volkit-sdk=={old}" not in text
        assert tomllib.loads(text)["project"]["version"] == "98.7.6"
    assert '__version__ = "98.7.6"' in (tmp_path / "src/volkit/__init__.py").read_text(encoding="utf-8")
    towncrier = [sys.executable, "-m", "towncrier", "build", "--draft", "--dir", str(tmp_path)]
    draft = subprocess.run(towncrier, check=True, capture_output=True, text=True).stdout
    assert "## 98.7.6 (" in draft
    for path in (ROOT / "changelog.d").glob("*.*.md"):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        assert first in draft, f"{path.name} is not in the changelog: is its name <issue or +word>.<type>.md?"
