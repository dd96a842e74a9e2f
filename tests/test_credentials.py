"""Access keys as Secrets spell them, and in the files of programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from volkit import AccessKey, Unauthenticated


def test_the_spellings_in_use() -> None:
    for spelled in (
        {"accessKey": "a", "secretKey": "s"},
        {"access.key": "a", "secret.key": "s"},
        {"accessKeyID": "a", "secretAccessKey": "s"},
        {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "password": "another"},
    ):
        assert AccessKey.read(spelled) == AccessKey("a", "s")
    assert AccessKey.read({"accessKey": "a", "secretKey": "s", "securityToken": "t"}) == AccessKey(
        "a", "s", "t"
    )
    assert AccessKey.read({}) is None
    for half in ({"secretKey": "s"}, {"accessKey": "a"}):
        with pytest.raises(Unauthenticated, match="belong together"):
            AccessKey.read(half)


def test_a_key_is_not_shown() -> None:
    assert "hidden" not in repr(AccessKey("hidden", "hidden", "hidden"))


def test_a_file_gives_the_key_back(tmp_path: Path) -> None:
    for key in (AccessKey("a", "s%/+="), AccessKey("a", "s", "t%(x)s")):
        (tmp_path / "credentials").write_text(key.credentials_file())
        assert AccessKey.read_file(str(tmp_path / "credentials")) == key
    assert AccessKey.read_file(str(tmp_path / "nothing")) is None
    assert AccessKey("a", "s").passwd_file() == "a:s\n"
