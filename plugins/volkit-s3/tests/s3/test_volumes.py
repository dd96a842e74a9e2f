"""Buckets and prefixes on a real server, looked at with plain boto3: who owns them, what is deleted and refused."""

from __future__ import annotations

import datetime
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from volkit import (
    AlreadyExists,
    FailedPrecondition,
    InUse,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Size,
    Unauthenticated,
    Unavailable,
)
from volkit.objects import Program, name_of
from volkit.requests import ListRequest, ModifyVolumeRequest

from .servers import SECRET, Rclone, Rgw, client, settings_of, wait_until
from .world import World, outcome

pytestmark = pytest.mark.needs("radosgw", "rclone")
OTHER = ("somebody-elses-key", "somebody-elses-secret-w8K")
ODD_KEYS = ("a b", "ü/日本", "dir/", "../up", "/lead", "a//b", "%2F", "a&<b>'\"", "tab\there", "x" * 900)


@pytest.fixture
def world(rgw: Rgw, tmp_path: Path) -> World:
    return World(tmp_path / "n1", settings_of(rgw, shared=True))


@pytest.fixture
def plain(rgw: Rgw) -> Any:
    return client(rgw.port)


@pytest.fixture(scope="module")
def somebody(running_rgw: Rgw) -> Any:
    """Another user of the server."""
    running_rgw.user("somebody", *OTHER)
    return client(running_rgw.port, *OTHER)


def buckets(plain: Any) -> set[str]:
    return {one["Name"] for one in plain.list_buckets()["Buckets"]}


def keys(plain: Any, bucket: str) -> set[str]:
    pages = plain.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {one["Key"] for page in pages for one in page.get("Contents", ())}


def put_many(plain: Any, bucket: str, names: list[str], content: bytes = b"x") -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: plain.put_object(Bucket=bucket, Key=key, Body=content), names))


def test_a_bucket_is_made_as_asked_and_told_from_others(world: World, plain: Any) -> None:
    asked = {"tags": "team=a,cost=7", "versioning": "true", "expireDays": "9"}
    made = world.create("Claim/1 ü", **asked)
    tags = {tag["Key"]: tag["Value"] for tag in plain.get_bucket_tagging(Bucket=made.id)["TagSet"]}
    assert tags["team"] == "a"
    assert tags["volkit.io/name"] == "Claim/1 =C3=BC"
    assert plain.get_bucket_versioning(Bucket=made.id)["Status"] == "Enabled"
    rule = plain.get_bucket_lifecycle_configuration(Bucket=made.id)["Rules"][0]
    assert rule["Expiration"]["Days"] == 9
    listed = world.engine.run("list_volumes", ListRequest())
    assert made.id in [one.volume.id for one in listed.entries]
    with pytest.raises(AlreadyExists):
        world.create("Claim/1 ü", **{**asked, "expireDays": "8"})
    world.delete(made.id)
    assert made.id not in buckets(plain)


def test_what_holds_objects_is_deleted_only_where_that_was_said(world: World, plain: Any) -> None:
    for mode in ("bucket", "prefix"):
        made = world.create(f"kept-{mode}", mode=mode)
        bucket, _, prefix = made.id.partition("/")
        key = f"{prefix}/file" if prefix else "file"
        plain.put_object(Bucket=bucket, Key=key, Body=b"x")
        with pytest.raises(FailedPrecondition, match="holds objects"):
            world.delete(made.id)
        assert key in keys(plain, bucket)
        request = ModifyVolumeRequest(volume_id=made.id, parameters={"onDelete": "purge"})
        world.engine.run("modify_volume", request)
        world.delete(made.id)
        assert bucket not in buckets(plain) if mode == "bucket" else key not in keys(plain, bucket)
        with pytest.raises(NotFound):
            world.get(made.id)


def test_versions_and_unfinished_uploads_and_odd_keys_go_too(world: World, plain: Any) -> None:
    made = world.create("odd", versioning="true", onDelete="purge")
    for key in ODD_KEYS:
        plain.put_object(Bucket=made.id, Key=key, Body=b"1")
        plain.put_object(Bucket=made.id, Key=key, Body=b"22")
    plain.delete_object(Bucket=made.id, Key="a b")  # a delete marker
    plain.create_multipart_upload(Bucket=made.id, Key="unfinished")
    world.delete(made.id)
    assert made.id not in buckets(plain)


def test_a_prefix_is_deleted_alone(world: World, plain: Any) -> None:
    one, two = (world.create(name, mode="prefix", onDelete="purge") for name in ("one", "two"))
    plain.put_object(Bucket="shared", Key="not-a-volume", Body=b"x")
    for volume in (one, two):
        put_many(plain, "shared", [f"{volume.id.partition('/')[2]}/{key}" for key in ODD_KEYS])
    world.delete(one.id)
    prefix = two.id.partition("/")[2]
    assert keys(plain, "shared") == {
        "not-a-volume",
        f".volkit/{prefix}",
        f"{prefix}/",
        *(f"{prefix}/{key}" for key in ODD_KEYS),
    }
    world.delete(two.id)
    assert keys(plain, "shared") == {"not-a-volume"}
    plain.delete_object(Bucket="shared", Key="not-a-volume")


def test_a_delete_of_many_objects_that_was_cut_short_is_finished(
    world: World, rgw: Rgw, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from volkit_s3.client import S3Bucket

    made = world.create("cut", onDelete="purge")
    rgw.fill(made.id, 2500)
    delete, calls = S3Bucket.delete_objects, itertools.count()

    def failing(self: S3Bucket, objects: Any) -> None:
        if next(calls):
            raise Unavailable("the server is away")
        delete(self, objects)

    with monkeypatch.context() as patch:
        patch.setattr(S3Bucket, "delete_objects", failing)
        with pytest.raises(Unavailable):
            world.delete(made.id)
    assert len(keys(plain, made.id)) in (1500, 2000)  # the page that was deleted is a whole one, or the last
    world.process()
    world.delete(made.id)
    assert made.id not in buckets(plain)


def test_a_quota_is_kept_to_and_changed(world: World, rgw: Rgw, plain: Any) -> None:
    """By a key whose user may set quotas; by another one nothing is made."""
    with pytest.raises(PermissionDenied, match="needs the capability buckets=write"):
        world.create("limited", quota="1Mi")
    assert name_of("limited", "volkit-") not in buckets(plain)
    rgw.admin("caps", "add", "--uid=volkit", "--caps=buckets=write")
    made = world.create("limited", quota="1Mi", onDelete="purge")
    plain.put_object(Bucket=made.id, Key="a", Body=b"x" * 700_000)
    with pytest.raises(ClientError, match="QuotaExceeded"):
        plain.put_object(Bucket=made.id, Key="b", Body=b"x" * 700_000)
    world.engine.run("modify_volume", ModifyVolumeRequest(volume_id=made.id, parameters={"quota": "4Mi"}))
    plain.put_object(Bucket=made.id, Key="b", Body=b"x" * 700_000)
    pod = world.publish(made.id)
    usage = world.stats(made.id).usage
    assert (usage.total, usage.used, usage.available) == (4 << 20, 1_400_000, (4 << 20) - 1_400_000)
    with pytest.raises(OSError):
        (pod / "c").write_bytes(b"x" * (4 << 20))
    world.unpublish(made.id)
    world.engine.run("modify_volume", ModifyVolumeRequest(volume_id=made.id, parameters={"quota": "0"}))
    plain.put_object(Bucket=made.id, Key="c", Body=b"x" * (4 << 20))
    world.delete(made.id)
    for asked in ({"mode": "prefix"}, {"bucket": "shared"}):
        with pytest.raises(InvalidArgument, match="'quota' is for a bucket that is made"):
            world.create("other", quota="1Mi", **asked)


def test_a_quota_where_the_server_has_none(rclone_server: Rclone) -> None:
    from volkit_s3.client import S3Bucket
    from volkit_s3.options import S3Parameters

    settings = settings_of(rclone_server)
    bucket = S3Bucket(settings, "mine", settings.allowed().own, settings.key())
    bucket.create()
    with pytest.raises(FailedPrecondition, match="has no quotas that volkit can set"):
        bucket.configure(S3Parameters(quota=Size(1 << 20)))
    assert "admin" not in buckets(client(rclone_server.port))


def test_a_token_that_has_expired(rgw: Rgw, tmp_path: Path) -> None:
    """Ceph's gateway answers AccessDenied; the error says what else that may mean."""
    keys = rgw.assume_role(seconds=4)
    world = World(tmp_path / "n1", settings_of(rgw, access_key="", secret_key="", mounter=Program.RCLONE))
    client(rgw.port).create_bucket(Bucket="by-a-role")
    pod = world.publish("by-a-role", secrets=keys)
    (pod / "file").write_text("x")
    world.unpublish("by-a-role")
    wait_until(lambda: rgw.has_expired(keys), "the token does not expire")
    with pytest.raises(PermissionDenied, match="or the session token has expired") as error:
        world.publish("by-a-role", secrets=keys)
    assert not [one for one in keys.values() if one in outcome(error)]
    world.assert_clean()
    assert client(rgw.port).get_object(Bucket="by-a-role", Key="file")["Body"].read() == b"x"


def test_a_bucket_that_was_there_is_adopted_and_never_deleted(world: World, plain: Any) -> None:
    plain.create_bucket(Bucket="precious")
    plain.put_bucket_tagging(Bucket="precious", Tagging={"TagSet": [{"Key": "mine", "Value": "1"}]})
    made = world.create("adopted", bucket="precious")
    assert made.id == "precious"
    (world.base / "state" / "journal.db").unlink()
    world.process()
    assert world.create("adopted", bucket="precious").id == "precious"
    with pytest.raises(AlreadyExists, match="is volume 'adopted' already"):
        world.create("another", bucket="precious")
    with pytest.raises(NotFound):
        world.create("nothing", bucket="no-such-bucket-here")
    with pytest.raises(InvalidArgument, match="is for a bucket that is made"):
        world.create("configured", bucket="precious", versioning="true")
    world.delete("precious")
    assert [tag["Key"] for tag in plain.get_bucket_tagging(Bucket="precious")["TagSet"]] == ["mine"]
    world.delete("precious")  # an administrator's own, as with a static PV
    assert "precious" in buckets(plain)
    world.create("adopted", bucket="precious", onDelete="purge")
    world.delete("precious")
    assert "precious" not in buckets(plain)


def test_a_bucket_that_holds_volumes_is_not_deleted(world: World, plain: Any) -> None:
    world.create("around", bucket="shared", onDelete="purge")
    inside = world.create("inside", mode="prefix", onDelete="purge")
    with pytest.raises(InUse, match="holds other volumes"):
        world.delete("shared")
    world.delete(inside.id)
    world.engine.run(
        "modify_volume", ModifyVolumeRequest(volume_id="shared", parameters={"onDelete": "keep"})
    )
    world.delete("shared")
    assert "shared" in buckets(plain)


def test_a_lost_journal_loses_no_volume(world: World, plain: Any) -> None:
    made = {mode: world.create(f"lost-{mode}", mode=mode, onDelete="purge") for mode in ("bucket", "prefix")}
    copy = world.create("lost-copy", made["bucket"].id, mode="prefix", onDelete="purge")
    (world.base / "state" / "journal.db").unlink()
    world.process()
    for mode, volume in made.items():
        assert world.create(f"lost-{mode}", mode=mode, onDelete="purge").id == volume.id
    again = world.create("lost-copy", made["bucket"].id, mode="prefix", onDelete="purge")
    assert (again.id, again.source) == (copy.id, copy.source)
    for volume in (*made.values(), copy):
        world.delete(volume.id)


def test_a_name_that_somebody_else_has(world: World, plain: Any, somebody: Any) -> None:
    name = name_of("taken", world.settings.bucket_prefix)
    somebody.create_bucket(Bucket=name)
    somebody.put_object(Bucket=name, Key="mine", Body=b"x")
    with pytest.raises(AlreadyExists, match="somebody else has a bucket of this name; set bucketPrefix"):
        world.create("taken")
    with pytest.raises(PermissionDenied):
        world.get(name)
    with pytest.raises(PermissionDenied):
        world.delete(name)
    assert keys(somebody, name) == {"mine"}


def test_a_policy_that_denies(world: World, rgw: Rgw, plain: Any, somebody: Any) -> None:
    made = world.create("denied", onDelete="purge")
    plain.put_object(Bucket=made.id, Key="file", Body=b"x")
    allow = ["s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads", "s3:GetBucketTagging"]
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": ["arn:aws:iam:::user/somebody"]},
                "Action": allow,
                "Resource": [f"arn:aws:s3:::{made.id}", f"arn:aws:s3:::{made.id}/*"],
            }
        ],
    }
    plain.put_bucket_policy(Bucket=made.id, Policy=json.dumps(policy))
    other = World(world.base / "other", settings_of(rgw, access_key=OTHER[0], secret_key=OTHER[1]))
    with pytest.raises(PermissionDenied, match="AccessDenied"):
        other.delete(made.id)
    assert keys(plain, made.id) == {"file"}
    world.delete(made.id)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"secret_key": "wrong-secret-Yw2"}, "SignatureDoesNotMatch"),
        ({"access_key": "no-such-key-Yw3", "secret_key": "wrong-secret-Yw2"}, "InvalidAccessKeyId"),
    ],
)
def test_wrong_keys(rgw: Rgw, tmp_path: Path, keys: dict[str, str], said: str) -> None:
    world = World(tmp_path / "n1", settings_of(rgw, **keys))
    for call in (
        lambda: world.create("v"),
        lambda: world.get("some-bucket"),
        lambda: world.delete("some-bucket"),
    ):
        with pytest.raises(Unauthenticated, match=said) as error:
            call()
        assert not [one for one in (SECRET, *keys.values()) if one in outcome(error)]


def test_a_clock_that_is_wrong(rgw: Rgw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.auth

    now = botocore.auth.get_current_datetime
    late = datetime.timedelta(hours=2)
    monkeypatch.setattr(
        botocore.auth, "get_current_datetime", lambda *words, **named: now(*words, **named) - late
    )
    with pytest.raises(Unauthenticated, match="RequestTimeTooSkewed: the clock of this machine is wrong"):
        World(tmp_path / "n1", settings_of(rgw)).get("some-bucket")


def test_a_server_that_is_away(rgw: Rgw, tmp_path: Path) -> None:
    world = World(tmp_path / "n1", settings_of(rgw, timeout=1.0))
    rgw.kill()
    with pytest.raises(Unavailable, match="the server does not answer"):
        world.create("v")
    rgw.start()

    def works() -> bool:
        try:
            world.delete(world.create("v").id)
        except Unavailable:
            return False
        return True

    wait_until(works, "nothing works after an outage")


def test_a_server_without_tags_is_refused_whole_buckets(rclone_server: Rclone, tmp_path: Path) -> None:
    world = World(tmp_path / "n1", settings_of(rclone_server))
    with pytest.raises(FailedPrecondition, match=r"keeps no tags .* use mode: prefix"):
        world.create("v")
    assert buckets(client(rclone_server.port)) == set()
