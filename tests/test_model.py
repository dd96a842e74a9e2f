"""Values never change under their reader, and never show a secret."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import pprint
import traceback
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volkit import model, requests
from volkit.model import (
    MAX_BYTES,
    NO_SECRETS,
    AccessMode,
    AccessType,
    BlockConnection,
    BlockVolume,
    Capability,
    CapacityRange,
    CloneSource,
    FileConnection,
    FileVolume,
    ObjectVolume,
    Secrets,
    SnapshotSource,
    Topology,
    Volume,
)

SECRETS = Secrets({"password": "hunter2", "user": "root-user"})
FLAGS = ("vers=3.0", "password=hunter2")


def with_secrets() -> list[Any]:
    """One of every request that can carry a secret."""
    capability = Capability(mount_flags=FLAGS)
    common: dict[str, Any] = {
        "secrets": SECRETS, "capability": capability, "capabilities": (capability,), "volume_id": "v", "name": "n",
        "parameters": {}, "source_volume_id": "v", "snapshot_id": "s", "node_id": "n", "target_path": "/t",
        "staging_target_path": "/s", "volume_path": "/t", "capacity_range": CapacityRange(),
        "connection": FileConnection(options=FLAGS),
    }  # fmt: skip
    made = []
    for one in vars(requests).values():
        if isinstance(one, type) and attrs.has(one) and one.__module__ == requests.__name__:
            names = {field.name for field in attrs.fields(one)}
            if names & {"secrets", "capability", "capabilities", "connection"}:
                made.append(one(**{name: common[name] for name in names & common.keys()}))
    return made


REQUESTS = with_secrets()


def shown(value: object) -> str:
    """Every way in which a value gets into a log."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.emit(logging.LogRecord("volkit", logging.ERROR, "", 0, "%s %r", (value, value), None))
    pprint.pprint(value, stream=stream)
    try:
        raise ValueError(value)
    except ValueError as error:
        stream.write("".join(traceback.format_exception(error)))
    return f"{stream.getvalue()}{value}{value!r}{[value]}{ {'a': value}!r}{f'{value!s}'}{value!a}"


def test_every_request_with_secrets_is_looked_at() -> None:
    assert len(REQUESTS) >= 15


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: type(one).__name__)
def test_a_request_never_shows_its_secrets(request_: Any) -> None:
    for text in (shown(request_), shown(attrs.asdict(request_, recurse=False))):
        assert "hunter2" not in text
        assert "root-user" not in text


@pytest.mark.parametrize(
    "request_", [one for one in REQUESTS if getattr(one, "secrets", None)], ids=lambda one: type(one).__name__
)
def test_a_request_with_secrets_is_not_serialised(request_: Any) -> None:
    for write in (pickle.dumps, copy.deepcopy, lambda value: json.dumps(attrs.asdict(value))):
        with pytest.raises(TypeError):
            write(request_)
    values = attrs.asdict(request_)
    assert values["secrets"] is SECRETS
    assert "hunter2" not in repr(values["secrets"])


def test_secrets_show_nothing() -> None:
    text = shown(SECRETS)
    for word in ("hunter2", "root-user", "password"):
        assert word not in text
    assert repr(SECRETS) == str(SECRETS) == f"{SECRETS}" == "Secrets(***)"
    assert repr(NO_SECRETS) == "Secrets()"


def test_secrets_are_read_by_key() -> None:
    assert SECRETS["password"] == "hunter2"
    assert sorted(SECRETS) == ["password", "user"]
    assert len(SECRETS) == 2
    assert SECRETS.get("none", "") == ""
    assert SECRETS
    assert not NO_SECRETS
    assert Secrets({"a": "b"}) == {"a": "b"}
    with pytest.raises(KeyError):
        NO_SECRETS["password"]


@pytest.mark.parametrize("write", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps])
def test_secrets_are_not_serialised(write: Any) -> None:
    for secrets in (SECRETS, NO_SECRETS):
        with pytest.raises(TypeError):
            write(secrets)


def test_secrets_are_their_own_copy() -> None:
    source = {"password": "hunter2"}
    secrets = Secrets(source)
    source["password"] = "changed"
    assert secrets["password"] == "hunter2"
    with pytest.raises(TypeError):
        secrets["password"] = "changed"  # type: ignore[index]
    with pytest.raises(AttributeError):
        secrets.other = "changed"  # type: ignore[attr-defined]


def test_mount_flags_and_options_are_not_shown() -> None:
    capability = Capability(mount_flags=FLAGS)
    for value in (capability, FileConnection(source="//srv/share", fs_type="cifs", options=FLAGS)):
        assert "hunter2" not in shown(value)
        assert "(***)" in repr(value)
    assert "hunter2" not in json.dumps(capability.record())
    assert "mount_flags=()" in repr(Capability())
    assert capability.mount_flags == FLAGS


def test_a_record_tells_capabilities_apart() -> None:
    ways = [
        Capability(access_mode=mode, access_type=kind, fs_type=fs_type, volume_mount_group=group)
        for mode in AccessMode for kind in AccessType for fs_type in ("", "xfs") for group in ("", "7")
    ]  # fmt: skip
    assert len({json.dumps(one.record()) for one in ways}) == len(ways)


@pytest.mark.parametrize(
    ("mode", "multi_node", "read_only", "multi_target"),
    [
        (AccessMode.SINGLE_NODE_WRITER, False, False, False),
        (AccessMode.SINGLE_NODE_READER_ONLY, False, True, False),
        (AccessMode.MULTI_NODE_READER_ONLY, True, True, True),
        (AccessMode.MULTI_NODE_SINGLE_WRITER, True, False, True),
        (AccessMode.MULTI_NODE_MULTI_WRITER, True, False, True),
        (AccessMode.SINGLE_NODE_SINGLE_WRITER, False, False, False),
        (AccessMode.SINGLE_NODE_MULTI_WRITER, False, False, True),
    ],
)
def test_access_modes(mode: AccessMode, multi_node: bool, read_only: bool, multi_target: bool) -> None:
    assert (mode.multi_node, mode.read_only, mode.multi_target) == (multi_node, read_only, multi_target)


def test_every_access_mode_is_tested() -> None:
    assert len(AccessMode) == 7


def values() -> list[Any]:
    return [
        BlockVolume(id="v"), FileVolume(id="v"), ObjectVolume(id="v"), Capability(), CapacityRange(), Topology(),
        model.TopologyRequirement(), SnapshotSource("s"), CloneSource("v"),
        BlockConnection(device="/dev/a"), FileConnection(),
        model.VolumeHealth(), model.Usage(total=1), *REQUESTS,
    ]  # fmt: skip


@pytest.mark.parametrize("value", values(), ids=lambda one: type(one).__name__)
def test_nothing_can_be_set(value: Any) -> None:
    for field in attrs.fields(type(value)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, field.name, None)
    with pytest.raises(AttributeError):
        value.brand_new = 1


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda given: BlockVolume(id="v", context=given), "context"),
        (Topology, "segments"),
        (lambda given: BlockConnection(device="/dev/a", identity=given), "identity"),
        (lambda given: requests.NodeInfo(facts=given), "facts"),
        (lambda given: requests.ControllerPublishResult(publish_context=given), "publish_context"),
        (lambda given: requests.CreateVolumeRequest(name="n", parameters={}, metadata=given), "metadata"),
    ],
)
def test_a_mapping_is_a_read_only_copy(make: Any, name: str) -> None:
    source = {"a": "1"}
    value = make(source)
    source["a"] = "2"
    source["b"] = "3"
    assert getattr(value, name) == {"a": "1"}
    assert isinstance(getattr(value, name), MappingProxyType)
    with pytest.raises(TypeError):
        getattr(value, name)["a"] = "2"


def test_a_list_becomes_a_tuple() -> None:
    flags = ["ro"]
    capability = Capability(mount_flags=flags)
    flags.append("rw")
    assert capability.mount_flags == ("ro",)
    assert BlockVolume(id="v", topology=[Topology()]).topology == (Topology(),)


def test_a_volume_has_a_kind() -> None:
    with pytest.raises(TypeError, match="BlockVolume, a FileVolume or an ObjectVolume"):
        Volume(id="v")
    assert [kind(id="v").kind for kind in (BlockVolume, FileVolume, ObjectVolume)] == [
        "block",
        "file",
        "object",
    ]
    assert len({repr(kind(id="v")) for kind in (BlockVolume, FileVolume, ObjectVolume)}) == 3
    assert [Volume.__eq__(BlockVolume(id="v"), kind(id="v")) for kind in (BlockVolume, FileVolume)] == [
        True,
        NotImplemented,
    ]
    assert attrs.evolve(BlockVolume(id="v"), capacity=5) == BlockVolume(id="v", capacity=5)


@given(st.integers(0, MAX_BYTES), st.integers(0, MAX_BYTES), st.integers(0, MAX_BYTES))
def test_a_size_in_a_range(required: int, limit: int, size: int) -> None:
    capacity = CapacityRange(required=required, limit=limit)
    assert (size in capacity) == (required <= size and (limit == 0 or size <= limit))
    assert size in CapacityRange()


SEGMENTS = st.dictionaries(
    st.sampled_from(["a/zone", "A/Zone", "b/rack", "c/node"]), st.sampled_from("xyX"), max_size=3
)


@given(SEGMENTS, SEGMENTS)
def test_within_a_place_with_more_segments(segments: dict[str, str], more: dict[str, str]) -> None:
    topology = Topology(segments)
    assert Topology().within(topology)
    if len({key.lower() for key in segments}) == len(segments):
        assert topology.within(topology)
        wider = {
            **{k: v for k, v in more.items() if k.lower() not in {key.lower() for key in segments}},
            **segments,
        }
        assert topology.within(Topology(wider))
        if segments:
            assert not topology.within(Topology())
            key = next(iter(segments))
            assert not topology.within(Topology({**segments, key: "other"}))


def test_keys_of_a_topology_compare_without_case_and_values_with() -> None:
    assert Topology({"Zone": "a"}).within(Topology({"zone": "a", "rack": "1"}))
    assert not Topology({"zone": "A"}).within(Topology({"zone": "a"}))
    assert not Topology({"zone": "a", "rack": "1"}).within(Topology({"zone": "a"}))


def test_candidates_are_in_order_of_preference_and_once() -> None:
    a, b, c = (Topology({"zone": name}) for name in "abc")
    requirement = model.TopologyRequirement(requisite=(a, b, c), preferred=(c, a))
    assert requirement.candidates() == (c, a, b)
    assert model.TopologyRequirement().candidates() == ()
    assert len({a, Topology({"zone": "a"})}) == 1


def test_a_node_name_that_is_too_long_for_a_topology_gets_a_short_one() -> None:
    long = "node-" + "x" * 200 + ".example"
    values = {model.Topology.of_node(name).segments["volkit.io/node"] for name in (long, long + "2", "n1")}
    assert len(values) == 3
    assert all(len(value) <= 63 for value in values)


def test_a_requirement_is_met_where_one_of_its_places_is() -> None:
    here, there = model.Topology.of_node("n1"), model.Topology.of_node("n2")
    zone = model.Topology({**here.segments, "zone": "z1"})
    both = model.TopologyRequirement(requisite=(there, here), preferred=(there,))
    assert both.met_by((here,))
    assert both.met_by((zone,))
    assert both.met_by(())
    assert model.TopologyRequirement().met_by((here,))
    assert not model.TopologyRequirement(preferred=(there,)).met_by((here,))
    assert not model.TopologyRequirement(requisite=(zone,)).met_by((here,))
    assert str(model.TopologyRequirement(requisite=(there,))) == "{'volkit.io/node': 'n2'}"
    assert str(model.TopologyRequirement()) == "any place"
