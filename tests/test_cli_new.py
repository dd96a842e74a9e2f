"""`volkit new`: what it writes passes its own tests, its linters and the conformance suite, as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from volkit import FailedPrecondition, InvalidArgument, cli, rendering
from volkit.cli import new

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

Show = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Show:
    def run(*argv: str) -> tuple[int, str, str]:
        code = cli.main(["new", *argv])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="module", params=new.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def project(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("new") / "volkit-acme-two"
    assert cli.main(["new", "acme-two", "--kind", kind, "--out", str(output)]) == 0
    return output


def in_project(project: Path, *command: str) -> str:
    """What the command says. It is one of this environment, and works without a network."""
    environment = {**os.environ, "PYTHONPATH": "src:tests", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in [name for name in environment if name.startswith(("PYTEST_", "VOLKIT_"))]:
        del environment[name]
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_whole(project: Path, kind: str) -> None:
    written = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert written == {
        ".github/workflows/ci.yml", ".gitignore", "Dockerfile", "README.md", "pyproject.toml",
        *(f"src/volkit_acme_two/{name}.py" for name in ("__init__", "backend", "client", "config", "controller")),
        "src/volkit_acme_two/node.py", "src/volkit_acme_two/plugin.py",
        "src/volkit_acme_two/py.typed", "tests/conftest.py", "tests/standin.py", "tests/test_client.py",
        "tests/test_conformance.py", *(["tests/test_node.py"] if kind == "block" else []),
    }  # fmt: skip
    entry = tomllib.loads((project / "pyproject.toml").read_text())["project"]["entry-points"]
    assert entry == {"volkit.backends": {"acme-two": "volkit_acme_two.plugin"}}
    ci = yaml.safe_load((project / ".github/workflows/ci.yml").read_text())
    assert ci["jobs"]["test"]["steps"][1]["with"] == {"python-version": "${{ matrix.python }}"}
    assert not [path for path in project.rglob("*") if path.is_file() and "PACKAGE" in path.read_text()]


def test_its_style_and_types(project: Path) -> None:
    in_project(project, "ruff", "check", "--no-cache", ".")
    in_project(project, "ruff", "format", "--no-cache", "--check", ".")
    in_project(project, "mypy", "--cache-dir", str(ROOT / ".mypy_cache"), "--strict", "src", "tests")


@pytest.mark.parametrize("kind", new.KINDS)
def test_its_style_whatever_its_name_is(kind: str, tmp_path: Path) -> None:
    for name in ("ab", "a-very-long-backend-name-of-acme"):
        assert cli.main(["new", name, "--kind", kind, "--out", str(tmp_path / name)]) == 0
    in_project(tmp_path, "ruff", "check", "--no-cache", ".")
    in_project(tmp_path, "ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.root
@pytest.mark.slow
def test_its_own_tests_pass(project: Path, kind: str, tmp_path: Path) -> None:
    """All of them for files; for disks those that cut calls short are left to the loop backend's suite, which has the
    same node.
    """
    some = ["-k", "not faults and not kill"] if kind == "block" else []
    said = in_project(
        project, "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'its'}", *some
    )
    assert re.search(r"^\d\d passed", said.splitlines()[-1]), said
    skips = [line for line in said.splitlines() if line.startswith("SKIPPED")]
    assert not [line for line in skips if "the backend has no" not in line]


def test_its_backend_is_one(project: Path, kind: str) -> None:
    told = in_project(project, "volkit", "explain", "backend", "volkit_acme_two.backend:AcmeTwo")
    assert f"{new.KINDS[kind].capitalize()}s of AcmeTwo." in told
    assert "token" in told


@pytest.mark.parametrize("name", ["acme", "a1", "x-y-z", "a" * 32])
def test_good_names(name: str) -> None:
    assert new.checked(name) == name
    assert f"src/volkit_{name.replace('-', '_')}/plugin.py" in new.contents(name)


@pytest.mark.parametrize(
    "name",
    [
        "", "a", "A", "1a", "-a", "a-", "a--b", "a_b", "a.b", "a/b", "../x", "é1", "a" * 33, "a\n", "{{ 1 }}",
        "csi", "flex", "docker", "sdk", "loop", "volkit-acme",
    ],
)  # fmt: skip
def test_bad_names(name: str, run: Show, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        new.checked(name)
    code, out, err = run("--out", str(tmp_path / "x"), "--", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert os.listdir(tmp_path) == []


def test_nothing_is_overwritten(run: Show, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    code, _, err = run("acme", "--out", str(tmp_path))
    assert code == 1
    assert "is there already" in err
    assert os.listdir(tmp_path) == ["kept"]


def test_all_or_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition):
        rendering.write_tree(tmp_path / "new", {"a": "1", "a/b": "2"})
    assert os.listdir(tmp_path) == []
    rendering.write_tree(tmp_path / "new", {"a/b": "2"})
    assert (tmp_path / "new/a/b").read_text() == "2"
    assert oct((tmp_path / "new").stat().st_mode & 0o777) == oct(0o777 & ~rendering._umask())


def test_without_jinja_it_says_what_to_install(
    run: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = run("acme", "--out", str(tmp_path / "x"))
    assert code == 1
    assert 'pip install "volkit-sdk[new]"' in err


def test_a_name_that_a_template_lacks_is_an_error() -> None:
    jinja = rendering.environment("volkit.cli")
    with pytest.raises(Exception, match="nosuch"):
        jinja.from_string("{{ nosuch }}").render()
