"""Bytes and messages of every sort over the real socket, to every RPC."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest

from volkit_csi.client import METHODS, SERVICES
from volkit_csi.wire import csi_pb2 as pb

from .bait import SECRET, SIZE, Site
from .driver import tree

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]
CALLS = 3000


def answer(call: Any, data: bytes) -> tuple[grpc.StatusCode, str]:
    try:
        call(data, timeout=60)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def filled(message: Any, site: Site, dice: random.Random, depth: int = 0) -> Any:
    """Some of the fields set: with values that are there, and with odd ones."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.2:
            continue
        value = getattr(message, field.name)
        if field.message_type is None:
            if field.is_repeated:
                value.extend([scalar(field, site, dice)] * dice.randrange(2))
            else:
                setattr(message, field.name, scalar(field, site, dice))
        elif field.message_type.GetOptions().map_entry:
            if dice.random() < 0.3:
                word = SECRET if field.name == "secrets" else dice.choice(("", "true", "1"))
                value[dice.choice(("preallocate", "nosuch", "", "firstFormat"))] = word
        elif depth < 5:
            if field.is_repeated:
                filled(value.add(), site, dice, depth + 1)
            else:
                value.SetInParent()
                filled(value, site, dice, depth + 1)
    return message


def scalar(field: Any, site: Site, dice: random.Random) -> Any:
    if field.enum_type is not None:
        return dice.choice((0, 1, 1, 1, 2, 5, 6, 7, 7, 99, -1))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return dice.random() < 0.5
    if field.cpp_type != field.CPPTYPE_STRING:
        wide = field.cpp_type == field.CPPTYPE_INT64
        return dice.choice((0, 1, -1, 4096, SIZE, 2**62, -(2**63)) if wide else (0, 1, -1, 2**31 - 1))
    odd = ["", "x", "..", "a/b", "\x01", "é" * 100, "x" * 5000]
    if field.name.endswith("volume_id"):
        return dice.choice([*odd, site.mounted.id, site.raw.id, site.staged.id, site.plain])
    if field.name == "snapshot_id":
        return dice.choice([*odd, site.snapshot])
    if field.name.endswith("path"):
        bait = [f"{site.bait}/{name}" for name in ("file", "full", "link", "dangling", "empty", "parent/new")]
        return dice.choice(
            [*odd, *bait, str(site.mounted.staging), str(site.mounted.target), str(site.raw.target)]
        )
    if field.name == "mount_flags":
        return dice.choice(("ro", "noatime", "bogus", "", f"password={SECRET}"))
    if field.name == "fs_type":
        return dice.choice(("", "ext4", "xfs", "ntfs"))
    return dice.choice([*odd, "fuzz-1", "fuzz-2", "n1"])


def shaken(data: bytes, dice: random.Random) -> bytes:
    """Noise; or the message cut short, longer, or with bytes changed."""
    match dice.randrange(4):
        case 0:
            return dice.randbytes(dice.randrange(64))
        case 1:
            return data[: dice.randrange(len(data) + 1)]
        case 2:
            return data + dice.randbytes(dice.randrange(1, 8))
    changed = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        if changed:
            changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def test_noise(tmp_path: Path) -> None:
    """Whatever comes: a code that means something, a driver that answers, and what nobody gave it stays as it was."""
    site = Site(tmp_path / "noise")
    dice = random.Random(7)
    methods = [one.name for name in SERVICES for one in pb.DESCRIPTOR.services_by_name[name].methods]
    codes: Counter[str] = Counter()
    try:
        # an empty target is removed by NodeUnpublish, and one is made where it is to be published
        given = ("/parent", "/empty")
        bait = {path: what for path, what in tree(site.bait).items() if not any(one in path for one in given)}
        with grpc.insecure_channel(f"unix:{site.co.client.path}") as channel:
            calls: dict[str, Any] = {
                one: channel.unary_unary(f"/{METHODS[one].containing_service.full_name}/{one}")
                for one in methods
            }
            for count in range(CALLS):
                method = methods[count % len(methods)]
                request = getattr(pb, METHODS[method].input_type.name)
                data = filled(request(), site, dice).SerializeToString()
                code, message = answer(calls[method], data if count % 2 else shaken(data, dice))
                assert code.name not in ("INTERNAL", "UNKNOWN", "DATA_LOSS"), (method, message)
                assert "unexpected" not in message, (method, message)
                assert "Traceback" not in message
                assert SECRET not in message
                codes[code.name] += 1
        site.driver.client.wait(timeout=30)
        assert codes.keys() > {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}, codes
        take_down(site)
        assert site.driver.left() == []
        after = tree(site.bait)
        assert {path: after.get(path) for path in bait} == bait
        assert SECRET not in site.driver.text()
        assert "Traceback" not in site.driver.text()
        assert "failed unexpectedly" not in site.driver.text()
    finally:
        site.close()


def take_down(site: Site) -> None:
    """Undo what a lucky message has put up, as the records tell."""
    for key in list(site.driver.records()):
        kind, _, rest = key.partition("/")
        if kind == "target":
            id_, _, path = rest.partition("/")
            request = {"volume_id": id_, "target_path": path.replace("%2F", "/")}
            site.co.call("NodeUnpublishVolume", pb.NodeUnpublishVolumeRequest(**request))
    staged = [
        (key.partition("/")[2], value)
        for key, value in site.driver.records().items()
        if key.startswith("stage/")
    ]
    for id_, value in staged:
        path = value.partition('"path": "')[2].partition('"')[0]
        site.co.call(
            "NodeUnstageVolume", pb.NodeUnstageVolumeRequest(volume_id=id_, staging_target_path=path)
        )
    for entry in site.co.call("ListSnapshots", pb.ListSnapshotsRequest()).entries:
        site.co.delete_snapshot(entry.snapshot.snapshot_id)
    for id_ in site.co.volumes():
        site.co.delete(id_)
