"""Bytes and messages of every sort against every RPC: a code that means something, and a driver that still
answers.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from volkit import Connection, ConnectRequest, Engine, NotFound
from volkit.testing.memory import ARRAYS, MemoryBackend, MemoryNode, memory_settings
from volkit_csi.endpoint import Endpoint
from volkit_csi.lean import csi_pb2 as pb
from volkit_csi.lean import grpc
from volkit_csi.server import Handler, Server, ServerContext
from volkit_csi.services import Plugin, handlers
from volkit_csi.status import Code, RpcError

PLUGIN = Plugin(name="memory.csi.volkit.io", version="1")
SECRET = "hunter2"
BYTES_PER_RPC = 10_000
MESSAGES = 10_000
BY_SERVER = 2_000
METHODS = [
    f"/csi.v1.{name}/{method.name}"
    for name in ("Identity", "Controller", "Node")
    for method in pb.DESCRIPTOR.services_by_name[name].methods
]

Try = Callable[[str, bytes], tuple[Code | None, str, bytes]]
"""Calls a method: the code (None for OK), the message and the answer."""


class Strict(MemoryNode):
    """Connects only what there is: a path that a changed byte made must lead nowhere."""

    def connect(self, request: ConnectRequest) -> Connection:
        if request.volume_id not in ARRAYS[self.settings.array].volumes:
            raise NotFound(f"there is no volume {request.volume_id!r}")
        return super().connect(request)


class StrictBackend(MemoryBackend):
    """The memory backend with that node."""

    name = "memory"
    node = Strict


class Site:
    """A backend at work below a directory, with a volume to find and paths of every sort to name."""

    def __init__(self, tmp: Path) -> None:
        self.bait = tmp / "bait"
        self.bait.mkdir()
        (self.bait / "file").write_text("precious")
        (self.bait / "full").mkdir()
        (self.bait / "full" / "file").write_text("precious")
        (self.bait / "link").symlink_to(self.bait / "full")
        (self.bait / "dangling").symlink_to(self.bait / "nothing")
        (tmp / "state").mkdir()
        self.staging = tmp / "staging"
        self.staging.mkdir()
        self.target = tmp / "target"
        self.up: list[tuple[str, bytes]] = []
        settings = memory_settings(root=tmp / "root")
        self.engine = Engine(StrictBackend, settings, state_dir=tmp / "state", node_id="n1")
        self.services = handlers(self.engine, PLUGIN)
        answer = self.ask(
            pb.CreateVolumeRequest(
                name="there", volume_capabilities=[{"mount": {}, "access_mode": {"mode": 1}}]
            )
        )
        self.volume_id = pb.CreateVolumeResponse.FromString(answer).volume.volume_id

    def handler(self, method: str) -> Handler:
        _, service, name = method.split("/")
        return self.services[service][name]

    def ask(self, message: Any) -> bytes:
        name = message.DESCRIPTOR.name.removesuffix("Request")
        method = next(one for one in METHODS if one.endswith(f"/{name}"))
        return self.handler(method)(message.SerializeToString(), ServerContext(method))

    def undo(self, method: str, data: bytes) -> None:
        """Take down what a lucky message has put up."""
        message = request_of(method).FromString(data)
        if method == "/csi.v1.Node/NodePublishVolume":
            undo = pb.NodeUnpublishVolumeRequest(volume_id=message.volume_id, target_path=message.target_path)
            self.ask(undo)
        elif method == "/csi.v1.Node/NodeStageVolume":
            path = message.staging_target_path
            self.ask(pb.NodeUnstageVolumeRequest(volume_id=message.volume_id, staging_target_path=path))

    def directly(self, method: str, data: bytes) -> tuple[Code | None, str, bytes]:
        try:
            return None, "", self.handler(method)(data, ServerContext(method))
        except RpcError as error:
            return error.code, error.message, b""

    def pools(self) -> Mapping[str, list[Any]]:
        """Values for fields, by the field's name, then by its type."""
        odd = ["", "x", "../../etc/passwd", "a/b", "a\nb", "\x01", "é" * 100, "x" * 5000, "\N{GRINNING FACE}"]
        ids = [*odd, self.volume_id, self.volume_id, self.volume_id, "gone", "vol-99999999", "snap-00000001"]
        bait = [
            str(self.bait / name) for name in ("file", "full", "link", "dangling", "link/x", "file/x", "no/x")
        ]
        paths = [
            *("", "/", "relative/path", "\x01", str(self.bait / ".." / "x"), f"{self.bait}/{'p' * 4100}"),
            *bait,
            *([str(self.staging), str(self.target)] * 4),
        ]
        return {
            "volume_id": ids,
            "source_volume_id": ids,
            "snapshot_id": ids,
            "staging_target_path": paths,
            "target_path": paths,
            "volume_path": paths,
            "node_id": [*odd, "n1", "n1?port=fc%3A1", "n1?port", "?"],
            "starting_token": [*odd, "after:", "after:vol-00000001"],
            "fs_type": [*odd, "ext4", "xfs", "ntfs"],
            "mount_flags": ["", "ro", "noatime", f"password={SECRET}", "x,y", "bogus", "\0", 'context="a,b"'],
            "volume_mount_group": ["", "0", "1000", "-1", "wheel"],
            "string": [*odd, "there", "other"],
            "int": [0, 0, 1, -1, 4096, 1 << 20, 1 << 40, 2**63 - 1, -(2**63)],
            "key": [*odd, "replicas", "tier", "replcas", "csi.storage.k8s.io/pvc/name", "firstFormat"],
            "value": [*odd, "1", "2", "slow", "true"],
        }

    def harmless(self) -> Mapping[str, list[Any]]:
        """Values for messages whose bytes are changed afterwards: they name nothing that there is."""
        return {**self.pools(), "volume_id": ["gone"], "name": [""]}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    before = tree(made.bait)
    yield made
    try:
        for method, data in reversed(made.up):
            made.undo(method, data)
        assert pb.ProbeResponse.FromString(made.ask(pb.ProbeRequest())).ready.value
        after = tree(made.bait)
        assert {path: after.get(path) for path in before} == before, "what was there is changed"
        left = {
            str(made.bait / "no"),
            str(made.bait / "no" / "x"),
        }  # a staging path and its parents are the CO's
        assert after.keys() - before.keys() <= left
    finally:
        made.engine.close()


def tree(top: Path) -> dict[str, str]:
    """Everything below a directory, with its content or where it leads."""
    found = {}
    for path in sorted(top.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"-> {os.readlink(path)}"
        else:
            found[str(path)] = "directory" if path.is_dir() else path.read_text()
    return found


def fill(message: Any, pools: Mapping[str, list[Any]], dice: random.Random, depth: int = 0) -> Any:
    """Set some of the fields at random."""
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 0.15:
            continue
        value = getattr(message, field.name)
        if field.message_type is None:
            chosen = [
                choose(field, pools, dice) for _ in range(dice.randrange(3) if field.is_repeated else 1)
            ]
            if field.is_repeated:
                value.extend(chosen)
            else:
                setattr(message, field.name, chosen[0])
        elif field.message_type.GetOptions().map_entry:
            for _ in range(dice.choice((0, 0, 0, 1, 2))):
                secret = field.name == "secrets"
                value[dice.choice(pools["key"])] = SECRET if secret else dice.choice(pools["value"])
        elif depth < 5:
            if not field.is_repeated:
                value.SetInParent()
                fill(value, pools, dice, depth + 1)
            else:
                for _ in range(dice.choice((0, 1, 1, 1, 2))):
                    fill(value.add(), pools, dice, depth + 1)
    return message


def choose(field: Any, pools: Mapping[str, list[Any]], dice: random.Random) -> Any:
    if field.enum_type is not None:
        return dice.choice((0, 1, 1, 1, 2, 3, 5, 6, 7, 8, 99, -1))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return dice.random() < 0.5
    if field.cpp_type == field.CPPTYPE_STRING:
        return dice.choice(pools.get(field.name, pools["string"]))
    number = dice.choice(pools["int"])
    return number if field.cpp_type == field.CPPTYPE_INT64 else max(-(2**31), min(number, 2**31 - 1))


def random_bytes(dice: random.Random, like: bytes) -> bytes:
    """Anything: noise, a message cut short, one with some bytes changed, two messages in one."""
    match dice.randrange(4):
        case 0:
            return dice.randbytes(dice.randrange(64))
        case 1:
            return like[: dice.randrange(len(like) + 1)]
        case 2:
            return like + dice.randbytes(dice.randrange(8))
    changed = bytearray(like)
    for _ in range(dice.randrange(1, 4)):
        if changed:
            changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def check(site: Site, attempt: Try, method: str, data: bytes) -> Code | None:
    """One call, and that its end is a proper one."""
    code, message, answer = attempt(method, data)
    if code is None:
        if method in ("/csi.v1.Node/NodePublishVolume", "/csi.v1.Node/NodeStageVolume"):
            site.up.append((method, data))
        getattr(pb, f"{method.rpartition('/')[2]}Response").FromString(answer)
        return None
    assert code.name not in ("INTERNAL", "UNKNOWN", "DATA_LOSS"), (method, data, message)
    assert message.strip(), (method, data, code)
    assert "\n" not in message
    assert "Traceback" not in message
    assert SECRET not in message or is_in_the_open(method, data)
    assert "failed unexpectedly" not in message, f"{method} fell over {data!r}"
    return code


def is_in_the_open(method: str, data: bytes) -> bool:
    """Has a byte that was changed made what was a secret a part of something else, such as a path?"""
    message = request_of(method).FromString(data)
    fields = message.DESCRIPTOR.fields_by_name
    if "secrets" in fields:
        message.ClearField("secrets")
    one = [message.volume_capability] if "volume_capability" in fields else []
    for capability in [*one, *(message.volume_capabilities if "volume_capabilities" in fields else ())]:
        capability.mount.ClearField("mount_flags")
    return SECRET.encode() in message.SerializeToString()


def request_of(method: str) -> Any:
    return getattr(pb, f"{method.rpartition('/')[2]}Request")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.rpartition("/")[2])
def test_random_bytes(method: str, site: Site) -> None:
    dice = random.Random(method)
    pools = {
        **site.pools(),
        "volume_id": ["gone"],
        "name": [""],
    }  # nothing to come of a byte that was changed
    messages = [fill(request_of(method)(), pools, dice).SerializeToString() for _ in range(100)]
    codes = Counter(
        check(site, site.directly, method, random_bytes(dice, dice.choice(messages)))
        for _ in range(BYTES_PER_RPC)
    )
    assert codes.total() == BYTES_PER_RPC
    assert codes[Code.INVALID_ARGUMENT] > BYTES_PER_RPC / 20


def test_random_messages(site: Site) -> None:
    dice = random.Random(1)
    pools = site.pools()
    codes: dict[str, Counter[Code | None]] = {method: Counter() for method in METHODS}
    for count in range(MESSAGES):
        method = METHODS[count % len(METHODS)]
        data = fill(request_of(method)(), pools, dice).SerializeToString()
        codes[method][check(site, site.directly, method, data)] += 1
    silent = [
        method for method in METHODS if method.split("/")[1] != "csi.v1.Identity" and len(codes[method]) < 2
    ]
    assert not [one for one in silent if "GetCapabilities" not in one and "NodeGetInfo" not in one], codes


def test_a_real_server_survives_both(site: Site, tmp_path: Path) -> None:
    server = Server(site.services, Endpoint.parse(f"unix://{tmp_path}/csi.sock"))
    server.start()
    dice = random.Random(2)
    pools, harmless = site.pools(), site.harmless()
    try:
        with grpc.insecure_channel(f"unix:{tmp_path}/csi.sock") as channel:
            calls: dict[str, Any] = {method: channel.unary_unary(method) for method in METHODS}

            def attempt(method: str, data: bytes) -> tuple[Code | None, str, bytes]:
                try:
                    return None, "", calls[method](data, timeout=120)
                except grpc.RpcError as error:
                    return (
                        Code[error.code().name],
                        error.details() or "",
                        b"",
                    )  # INTERNAL is no Code: a KeyError

            for count in range(BY_SERVER):
                method = METHODS[count % len(METHODS)]
                changed = count % 4 < 2
                data = fill(request_of(method)(), harmless if changed else pools, dice).SerializeToString()
                check(site, attempt, method, random_bytes(dice, data) if changed else data)
            answer = calls["/csi.v1.Identity/Probe"](b"", timeout=60)
            assert pb.ProbeResponse.FromString(answer).ready.value
    finally:
        assert server.drain(60) == 0
