"""A share is mounted by its type's own program, which is told no password where others can read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from volkit.errors import VolkitError
from volkit.host import mounts
from volkit.model import FileConnection
from volkit.node_state import mount_remote

PROGRAM = """#!/bin/sh
tr '\\0' ' ' </proc/$$/cmdline >"$0.arguments"
printf %s "$PASSWD" >"$0.password"
[ "$PASSWD" != swordfish ] || { echo "no share for $PASSWD" >&2; exit 32; }
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in of mount.cifs, which has no server here."""
    path = tmp_path / "mount.any"
    path.write_text(PROGRAM)
    path.chmod(0o755)
    monkeypatch.setattr(mounts, "mount_program", lambda fs_type: str(path))
    return path


def seen(program: Path) -> tuple[list[str], str]:
    words = Path(f"{program}.arguments").read_text().split()
    return words[words.index("//srv/share") :], Path(f"{program}.password").read_text()


def share(fs_type: str, *options: str) -> FileConnection:
    return FileConnection(source="//srv/share", fs_type=fs_type, options=options)


@pytest.mark.parametrize("fs_type", ["cifs", "smb3"])
@pytest.mark.parametrize("word", ["password", "pass"])
def test_a_password_is_in_no_argument(program: Path, fs_type: str, word: str) -> None:
    mount_remote(share(fs_type, "username=u", f"{word}=hunter2=,x"), "/mnt/a", ["ro"])
    assert seen(program) == (["//srv/share", "/mnt/a", "-o", "username=u,ro"], "hunter2=,x")


def test_a_password_alone_leaves_no_options(program: Path) -> None:
    mount_remote(share("cifs", "password=hunter2"), "/mnt/a", [])
    assert seen(program) == (["//srv/share", "/mnt/a"], "hunter2")


def test_other_options_stay(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PASSWD", raising=False)
    mount_remote(share("nfs", "vers=4.2", "password=of-no-meaning"), "/mnt/a", [])
    assert seen(program) == (["//srv/share", "/mnt/a", "-o", "vers=4.2,password=of-no-meaning"], "")


def test_a_password_is_in_no_error(program: Path) -> None:
    with pytest.raises(VolkitError) as refused:
        mount_remote(share("cifs", "password=swordfish"), "/mnt/a", [])
    assert "no share for" in str(refused.value)
    assert "swordfish" not in str(refused.value)
