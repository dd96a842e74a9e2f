"""What a debug log shows of a message, and what it never does."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from volkit_csi.lean import csi_pb2 as pb
from volkit_csi.redaction import Redactor

SECRET = "hunter2"
NAMES = sorted(name for name in pb.DESCRIPTOR.message_types_by_name)


def fill(message: Any, depth: int = 0) -> None:
    """Set every field, with the secret wherever one belongs."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            if field.name == "mount_flags":
                value.append(f"password={SECRET}")
            elif field.is_repeated:
                continue
            elif field.cpp_type == field.CPPTYPE_STRING:
                setattr(message, field.name, f"shown-{field.name}")
        elif field.message_type.GetOptions().map_entry:
            value["apiKey" if field.name != "secrets" else "key"] = SECRET
        elif depth < 4:
            fill(value.add() if field.is_repeated else value, depth + 1)


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_of_any_message_is_shown(name: str) -> None:
    message = getattr(pb, name)()
    fill(message)
    before = message.SerializeToString()
    text = Redactor({"apiKey"})(message)
    assert SECRET not in text
    assert message.SerializeToString() == before, "the message itself was changed"


def test_the_rest_is_shown_on_one_line() -> None:
    message = pb.NodePublishVolumeRequest(volume_id="v1", target_path="/t\n", volume_context={"pool": "a"})
    text = Redactor()(message)
    assert all(word in text for word in ("v1", "/t", "pool"))
    assert "\n" not in text


def test_secrets_show_neither_keys_nor_count() -> None:
    one = pb.DeleteVolumeRequest(volume_id="v", secrets={"user": "u"})
    two = pb.DeleteVolumeRequest(volume_id="v", secrets={"user": "u", "password": "p"})
    none = pb.DeleteVolumeRequest(volume_id="v")
    texts = [Redactor()(message) for message in (one, two, none)]
    assert texts[0] == texts[1] != texts[2]
    assert "user" not in texts[0]


def test_the_tokens_that_kubelet_adds_are_masked() -> None:
    context = {"csi.storage.k8s.io/serviceAccount.tokens": SECRET, "csi.storage.k8s.io/pod.name": "web-0"}
    text = Redactor()(pb.NodePublishVolumeRequest(volume_context=context))
    assert SECRET not in text
    assert "web-0" in text


def test_declared_secrets_are_masked_in_nested_maps_too() -> None:
    volumes = [
        pb.Volume(volume_id="a", volume_context={"apiKey": SECRET, "b": "shown"}),
        pb.Volume(volume_id="c"),
    ]
    entries = [pb.ListVolumesResponse.Entry(volume=volume) for volume in volumes]
    text = Redactor({"apiKey"})(pb.ListVolumesResponse(entries=entries))
    assert SECRET not in text
    assert all(word in text for word in ("apiKey", "shown", '"c"'))


def test_every_message_was_looked_at() -> None:
    services = pb.DESCRIPTOR.services_by_name.values()
    used = {
        kind.name
        for service in services
        for rpc in service.methods
        for kind in (rpc.input_type, rpc.output_type)
    }
    assert used <= set(NAMES)
    assert len(list(itertools.chain(NAMES))) > 60
