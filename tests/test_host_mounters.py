"""What the programs that mount buckets are called with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attrs
import pytest

from volkit import AccessKey, Capability, FailedPrecondition, FuseConnection, InvalidArgument
from volkit.host import mounters
from volkit.host.mounters import GEESEFS, MOUNT_S3, MOUNTERS, RCLONE, S3FS, BucketMount, FileOwner, Mounter
from volkit.objects import Program

KEY = AccessKey("the-id", "the-secret")
MOUNT = BucketMount(bucket="b", endpoint="https://s3.example", key=KEY)
ALL = pytest.mark.parametrize("mounter", MOUNTERS.values(), ids=lambda one: one.program)


def words(mounter: Mounter, mount: BucketMount) -> list[str]:
    """The arguments, with those behind a -o one by one."""
    return [word for argument in mounter.connection(mount).argv for word in argument.split(",")]


@ALL
def test_what_every_program_is_told(mounter: Mounter) -> None:
    whole = mounter.connection(MOUNT)
    assert whole.argv[0].endswith(mounter.program)
    assert "{target}" in whole.argv
    assert {"-f", "--foreground", "mount"} & set(whole.argv)
    assert {"allow_other", "--allow-other"} & set(words(mounter, MOUNT))
    assert any("https://s3.example" in word for word in whole.argv)
    assert set(whole.files) == {"credentials", "passwd"}
    assert whole.environment["AWS_SHARED_CREDENTIALS_FILE"] == "{files}/credentials"
    assert not [one for one in (*whole.argv, *whole.environment.values()) if "the-" in one]
    alone = mounter.connection(BucketMount(bucket="b"))
    assert not alone.files
    assert not [word for word in alone.argv if "{files}" in word]
    prefixed = words(mounter, attrs.evolve(MOUNT, prefix="a b/c"))
    assert [word for word in prefixed if "a b/c" in word]


@ALL
def test_whose_files_they_are(mounter: Mounter) -> None:
    owner = FileOwner.read(Capability(mount_flags=("uid=1234", "umask=007"), volume_mount_group="4321"))
    assert owner == FileOwner(uid=1234, gid=4321, umask=0o007)
    found = " ".join(words(mounter, attrs.evolve(MOUNT, owner=owner)))
    assert "uid=1234" in found
    assert "gid=4321" in found
    assert "umask=0007" in found or "--dir-mode=0770 --file-mode=0660" in found
    unasked = " ".join(words(mounter, MOUNT))
    assert "uid=" not in unasked
    assert "gid=" not in unasked


def test_each_row_is_of_a_value() -> None:
    known = BucketMount(bucket="b").values()
    for mounter in MOUNTERS.values():
        for condition, text in (*mounter.argv, *mounter.options):
            assert not condition or condition.removeprefix("!") in known
            assert all(word.format_map(known) or "{" in word for word in text.split())


def test_other_mount_options_are_refused_unseen() -> None:
    for flag in ("passwd_file=/etc/shadow", "uid=-1", "umask=9", "uid=1,passwd_file=/etc/shadow", "uid=1\n"):
        with pytest.raises(InvalidArgument, match="not allowed") as error:
            FileOwner.read(Capability(mount_flags=(flag,)))
        assert "shadow" not in str(error.value)
    assert FileOwner.read(Capability(volume_mount_group="7")) == FileOwner(gid=7, umask=0o002)
    with pytest.raises(InvalidArgument, match="cannot be mounted"):
        BucketMount(bucket="b", prefix="a/{files}")


def test_what_the_programs_differ_in() -> None:
    temporary = attrs.evolve(MOUNT, key=AccessKey("i", "s", "t"))
    with pytest.raises(FailedPrecondition, match="takes no session token"):
        S3FS.connection(temporary)
    assert "aws_session_token = t" in RCLONE.connection(temporary).files["credentials"]
    v2 = attrs.evolve(MOUNT, signature_v2=True, path_style=True, ca="/ca.pem")
    assert {"sigv2", "use_path_request_style"} <= set(words(S3FS, v2))
    assert {"--s3-v2-auth=true", "--s3-force-path-style=true", "--ca-cert=/ca.pem"} <= set(words(RCLONE, v2))
    assert "--force-path-style" in words(MOUNT_S3, v2)
    assert "--subdomain" not in words(GEESEFS, v2)
    assert "--subdomain" in words(GEESEFS, MOUNT)
    assert S3FS.connection(v2).environment["CURL_CA_BUNDLE"] == "/ca.pem"
    assert MOUNT_S3.connection(MOUNT).source == "mountpoint-s3"
    assert S3FS.connection(MOUNT).source == "b"


def test_a_role_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:role")
    assert RCLONE.connection(BucketMount(bucket="b")).environment == {"AWS_ROLE_ARN": "arn:role"}


def test_the_first_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.value for one in Program] == list(MOUNTERS)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for name in ("geesefs", "mount-s3"):
        (tmp_path / name).touch(mode=0o755)
    assert mounters.find(("geesefs", "mount-s3")) is GEESEFS
    assert GEESEFS.connection(MOUNT).argv[0] == str(tmp_path / "geesefs")
    (tmp_path / "geesefs").unlink()
    assert mounters.find(("geesefs", "mount-s3")) is MOUNT_S3
    with pytest.raises(FailedPrecondition, match="install one of geesefs"):
        mounters.find(("geesefs",))


def test_what_rclone_has_not_written(tmp_path: Path) -> None:
    connection = FuseConnection(argv=("rclone",), cache=str(tmp_path), directory=str(tmp_path))
    assert mounters.pending(connection) == 0
    (tmp_path / "vfsMeta" / "s3" / "b").mkdir(parents=True)
    for name, size, dirty in (("a", 5, True), ("empty", 0, True), ("written", 7, False)):
        (tmp_path / "vfsMeta" / "s3" / "b" / name).write_text(json.dumps({"Size": size, "Dirty": dirty}))
    (tmp_path / "vfsMeta" / "s3" / "b" / "half").write_text("{")
    assert mounters.pending(connection) == 7  # what is being written is not known to be clean
    assert mounters.key_of(connection) is None
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "credentials").write_text(KEY.credentials_file())
    assert mounters.key_of(connection) == KEY
