"""Command lines, options and devices: what is taken, what is refused in one sentence, and what is never shown."""

from __future__ import annotations

import json
import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volkit import ERRORS, InvalidArgument, NotFound, Unsupported, VolkitError
from volkit_flex import token, wire
from volkit_flex.node_calls import device_mount_path
from volkit_flex.options import Options, read_options, secret_values
from volkit_flex.token import Attachment
from volkit_loop.backend import LoopBackend

POD = {
    "kubernetes.io/pvOrVolumeName": "data",
    "kubernetes.io/pod.uid": "u1",
    "kubernetes.io/pod.namespace": "a",
}


def options(given: dict[str, str], *, attaches: bool = False, path: str = "/x") -> Options:
    call = wire.read(["mount", path, json.dumps(given)])
    return read_options(call, LoopBackend, attaches=attaches)


def test_the_arguments_are_those_of_kubelet() -> None:
    call = wire.read(["expandfs", '{"a":"b"}', "/dev/x", "/m", "67108864", "33554432"])
    assert (call.options, call.device, call.path) == ({"a": "b"}, "/dev/x", "/m")
    assert (call.new_size, call.old_size) == (64 << 20, 32 << 20)
    assert wire.read(["detach", "pv-1", "node1"]).name == "pv-1"
    old = wire.read(["isattached", "node1", '{"a":"b"}'])
    assert (old.node, old.options) == ("node1", {"a": "b"})
    assert wire.read(["mount", "/m", "null"]).options == {}


@given(st.lists(st.text(max_size=40), max_size=6))
def test_no_command_line_breaks_the_reader(words: list[str]) -> None:
    said = ""
    try:
        assert wire.read(words).operation in wire.CALLS
    except InvalidArgument as error:
        said = error.message
    assert not said or 10 < len(said) < 400


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda one: st.lists(one) | st.dictionaries(st.text(), one),
        max_leaves=8,
    )
)
def test_no_options_break_the_reader(value: object) -> None:
    with suppress(InvalidArgument):
        call = wire.read(["mount", "/m", json.dumps(value)])
        assert read_options(call, LoopBackend, attaches=False).volume


def test_what_identifies_a_volume() -> None:
    assert options({**POD, "volume": "v1"}).volume == "v1"
    assert options({**POD, "id": "v2"}).volume == "v2"
    assert options(POD).volume == "u1-data"
    assert options(POD).inline
    assert options(POD, attaches=True).volume == "data"
    provisioned = "pvc-3f1c2a54-98d1-4a0b-9d5e-0c3a3a1b2c3d"
    assert options({**POD, "kubernetes.io/pvOrVolumeName": provisioned}).volume == provisioned
    with pytest.raises(InvalidArgument, match="nothing names the volume"):
        options({"size": "1Gi"})


def test_both_spellings_of_fs_group() -> None:
    for key in ("kubernetes.io/mounterArgs.FsGroup", "kubernetes.io/fsGroup"):
        assert options({**POD, key: "1234"}).fs_group == "1234"
        with pytest.raises(InvalidArgument, match="number of a group"):
            options({**POD, key: "-1"})


def test_when_a_volume_may_be_made() -> None:
    assert options({**POD, "size": "1Gi"}).create
    assert options({**POD, "create": "true"}).create
    assert options({**POD, "ephemeral": "true"}).create
    assert not options(POD).create
    assert not options({**POD, "size": "1Gi", "create": "no"}).create


def test_secrets_come_from_both_places_and_are_masked() -> None:
    given = {**POD, "kubernetes.io/secret/user": "dTE=", "secretKey": "hunter2", "preallocate": "true"}
    read = options(given)
    assert dict(read.secrets) == {"user": "u1", "secretKey": "hunter2"}
    assert read.parameters == {"preallocate": "true"}
    assert "hunter2" not in repr(read)
    assert not any("secret" in key for key in read.metadata)
    assert set(secret_values(given, LoopBackend)) == {"dTE=", "u1", "hunter2"}


@pytest.mark.parametrize(
    ("key", "is_one"),
    [
        *[
            (key, True)
            for key in ("accessKey", "secretKey", "access_key", "secretAccessKey", "accessKeyId", "password")
        ],
        *[(key, True) for key in ("sessionToken", "token", "passphrase", "api-key", "accountKey")],
        *[(key, False) for key in ("key", "bucket", "keyspace", "user", "tokenizer", "passive")],
    ],
)
def test_what_is_taken_for_a_credential(key: str, is_one: bool) -> None:
    assert bool(options({**POD, key: "x"}).secrets) == is_one


def test_the_pods_directory_is_believed() -> None:
    path = "/var/lib/kubelet/pods/u1/volumes/acme~loop/data"
    assert options(POD, path=path).volume == "u1-data"
    with pytest.raises(InvalidArgument, match="directory says 'u1'"):
        options({**POD, "kubernetes.io/pod.uid": "u2"}, path=path)
    with pytest.raises(InvalidArgument, match="directory says 'other'"):
        options(POD, path=path.replace("data", "other"))
    device = "/var/lib/kubelet/plugins/kubernetes.io/flexvolume/acme/loop/mounts/pv-1"
    with pytest.raises(InvalidArgument, match="directory says 'pv-1'"):
        options(POD, path=device, attaches=True)


@given(
    st.text(min_size=1).filter(lambda text: text.isprintable()),
    st.dictionaries(st.text(min_size=1), st.text()),
)
def test_a_device_tells_again_what_attach_gave(volume_id: str, context: dict[str, str]) -> None:
    made = Attachment(volume_id, "data", context, {"firstFormat": "true"})
    assert token.decode(token.encode(made)) == made


def test_what_is_no_text_is_said_to_be_none() -> None:
    bad = os.fsdecode(b"/m/\xff")
    for words in (["unmount", bad], ["detach", bad, "n"], ["waitforattach", bad, "{}"]):
        with pytest.raises(InvalidArgument, match="not valid UTF-8"):
            wire.read(words)
    with pytest.raises(InvalidArgument, match="option 'volume' is not valid UTF-8"):
        wire.read(["mount", "/m", '{"volume": "\\ud800"}'])


def test_devices_that_are_none() -> None:
    assert token.decode("") is None
    for device, error in (
        ("/dev/not-there", NotFound),
        ("/etc/passwd", InvalidArgument),
        ("sda", InvalidArgument),
    ):
        with pytest.raises(error):
            token.decode(device)


def test_every_error_is_an_answer() -> None:
    for cls in ERRORS:
        answer = wire.failure(cls("said"))
        assert answer == {"status": "Failure", "message": "said"}
        assert wire.exit_code(answer) == 1
    assert wire.failure(ValueError("hunter2"))["message"] == "the driver failed (ValueError): see its log"
    assert issubclass(Unsupported, VolkitError)
    assert wire.unsupported("attach")["status"] == "Not supported"
    assert wire.encode({"status": "Success", "message": "ü\n\ud800"}).count(b"\n") == 1


def test_where_kubelet_mounts_devices() -> None:
    assert device_mount_path("/var/lib/kubelet/pods/u1/volumes/acme~loop/pv-1") == (
        "/var/lib/kubelet/plugins/kubernetes.io/flexvolume/acme/loop/mounts/pv-1"
    )
    assert device_mount_path("/mnt/x") == ""
