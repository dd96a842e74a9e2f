"""`volkit call` and the client under it: every RPC has its flags, every flag lands in its field, every code
has its exit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import volkit
from volkit.cli import main as volkit_main
from volkit_csi import call, show
from volkit_csi.client import METHODS, CallError, Client
from volkit_csi.lean import csi_pb2 as pb

Run = Callable[..., tuple[int, str, str]]
MEMORY = "volkit.testing.memory:MemoryBackend"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A driver of the memory backend, in a process of its own."""
    work = tmp_path_factory.mktemp("driver")
    program = "import sys; from volkit_csi.main import main; sys.exit(main())"
    arguments = [
        "--backend",
        MEMORY,
        "--state-dir",
        str(work / "state"),
        "--node-id",
        "n1",
        "-o",
        f"root={work}/root",
    ]
    endpoint = f"unix://{work}/csi.sock"
    with (work / "log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, "--endpoint", endpoint], stderr=log
        )
    try:
        with Client(endpoint) as client:
            client.wait(60)
        yield endpoint
    finally:
        driver.terminate()
        driver.wait(60)


@pytest.fixture
def run(endpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("CSI_ENDPOINT", endpoint)

    def run(line: str) -> tuple[int, str, str]:
        try:
            code = call.main(line.split())
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def build(line: str) -> Any:
    args = call.make_parser().parse_args(line.split())
    return call.build(args.method, args)


# -- from flags to messages ----------------------------------------------------------------------------------


def test_every_rpc_of_the_three_services_is_a_command() -> None:
    assert len(METHODS) == 3 + 15 + 8
    assert [call.command_of(name) for name in ("Probe", "GetPluginInfo", "NodeGetVolumeStats")] == [
        "probe", "get-plugin-info", "node-get-volume-stats",
    ]  # fmt: skip
    for method, row in METHODS.items():
        assert build(call.command_of(method)).DESCRIPTOR is row.input_type


MODES = [mode.value for mode in volkit.AccessMode]
WRITER = pb.VolumeCapability.AccessMode(mode="SINGLE_NODE_WRITER")
MOUNT = pb.VolumeCapability(mount={}, access_mode=WRITER)
PARAMETERS = "--parameter a=b=c --parameter d= --mutable-parameter e=f"
MOUNTED = "--fs-type xfs --mount-flag ro --mount-flag noatime --volume-mount-group 5 "
MOUNTED += "--access-mode multi-node-reader-only"
FULL = pb.VolumeCapability(
    mount=pb.VolumeCapability.MountVolume(
        fs_type="xfs", mount_flags=["ro", "noatime"], volume_mount_group="5"
    ),
    access_mode=pb.VolumeCapability.AccessMode(mode="MULTI_NODE_READER_ONLY"),
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("probe", pb.ProbeRequest()),
        (
            f"create-volume --name v --size 1Gi --limit 2Gi {PARAMETERS}",
            pb.CreateVolumeRequest(
                name="v",
                capacity_range=pb.CapacityRange(required_bytes=1 << 30, limit_bytes=2 << 30),
                volume_capabilities=[MOUNT],
                parameters={"a": "b=c", "d": ""},
                mutable_parameters={"e": "f"},
            ),
        ),
        (
            "create-volume --name v --from-snapshot s --requisite z=a,r=1 --requisite z=b --preferred z=b",
            pb.CreateVolumeRequest(
                name="v",
                volume_capabilities=[MOUNT],
                volume_content_source=pb.VolumeContentSource(snapshot={"snapshot_id": "s"}),
                accessibility_requirements=pb.TopologyRequirement(
                    requisite=[pb.Topology(segments={"z": "a", "r": "1"}), pb.Topology(segments={"z": "b"})],
                    preferred=[pb.Topology(segments={"z": "b"})],
                ),
            ),
        ),
        (
            f"node-stage-volume --volume-id v --staging-target-path /s --publish-context lun=3 {MOUNTED}",
            pb.NodeStageVolumeRequest(
                volume_id="v", staging_target_path="/s", volume_capability=FULL, publish_context={"lun": "3"}
            ),
        ),
        (
            "node-publish-volume --volume-id v --target-path /t --block --readonly",
            pb.NodePublishVolumeRequest(
                volume_id="v",
                target_path="/t",
                readonly=True,
                volume_capability=pb.VolumeCapability(block={}, access_mode=WRITER),
            ),
        ),
        ("node-expand-volume --volume-id v", pb.NodeExpandVolumeRequest(volume_id="v")),
        ("get-capacity", pb.GetCapacityRequest()),
        (
            "get-capacity --topology z=a",
            pb.GetCapacityRequest(accessible_topology=pb.Topology(segments={"z": "a"})),
        ),
        (
            "list-volumes --max-entries 5 --starting-token t",
            pb.ListVolumesRequest(max_entries=5, starting_token="t"),
        ),
        ("controller-unpublish-volume --volume-id v", pb.ControllerUnpublishVolumeRequest(volume_id="v")),
        (
            "create-volume --name v --from-volume w --block",
            pb.CreateVolumeRequest(
                name="v",
                volume_capabilities=[pb.VolumeCapability(block={}, access_mode=WRITER)],
                volume_content_source=pb.VolumeContentSource(volume={"volume_id": "w"}),
            ),
        ),
    ],
)  # fmt: skip
def test_a_flag_lands_in_its_field(line: str, expected: Any) -> None:
    assert build(line) == expected


@pytest.mark.parametrize("mode", MODES)
def test_every_access_mode_is_one_of_the_wire(mode: str) -> None:
    built = build(f"validate-volume-capabilities --volume-id v --access-mode {mode}")
    assert built.volume_capabilities[0].access_mode.mode == len(MODES) - len(MODES[MODES.index(mode) :]) + 1


def test_a_secret_comes_from_a_file_only(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("hunter2\n")
    assert dict(build(f"delete-volume --volume-id v --secret token=@{secret}").secrets) == {
        "token": "hunter2"
    }
    with pytest.raises(volkit.InvalidArgument, match="write token=@/FILE") as caught:
        build("delete-volume --volume-id v --secret token=hunter2")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(volkit.InvalidArgument, match="/does/not/exist: No such file"):
        build("delete-volume --volume-id v --secret token=@/does/not/exist")


# -- a driver that answers -----------------------------------------------------------------------------------


def test_a_volume_by_hand(run: Run) -> None:
    code, out, err = run("create-volume --name by-hand --size 5Mi --parameter replicas=2 --json")
    assert (code, err) == (0, "")
    volume = json.loads(out)["volume"]
    assert volume["capacity_bytes"] == 5 * 1024 * 1024
    assert run(f"controller-get-volume --volume-id {volume['volume_id']}")[0] == 0
    code, out, _ = run("list-volumes")
    assert volume["volume_id"] in out
    assert "5Mi" in out
    assert "next_token" not in out
    code, out, _ = run(f"delete-volume --volume-id {volume['volume_id']}")
    assert (code, out) == (0, "OK\n")


def test_an_error_has_its_code_and_its_sentence(run: Run) -> None:
    code, out, err = run("controller-get-volume --volume-id nosuch")
    assert (code, out) == (105, "")
    assert re.fullmatch(r"ControllerGetVolume: NOT_FOUND: .*nosuch.*\n", err)
    code, out, err = run("create-volume --name x --parameter replicas=99 --json")
    assert (code, err) == (103, "")
    error = json.loads(out)["error"]
    assert (error["code"], error["number"]) == ("INVALID_ARGUMENT", 3)
    assert "replicas" in error["message"]


def test_flags_may_come_before_the_command(run: Run, endpoint: str) -> None:
    code, out, _ = run(f"--json --endpoint {endpoint.removeprefix('unix://')} probe")
    assert (code, json.loads(out)) == (0, {"ready": True})
    code, out, _ = run(f"probe --endpoint {endpoint} --timeout 5")
    assert (code, out) == (0, "ready: yes\n")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "arguments are required: RPC"),
        ("create-volum", "invalid choice"),
        ("create-volume --size 1Xi", "'1Xi' is not a size"),
        ("create-volume --parameter tier", "--parameter: 'tier' has no value: write KEY=VALUE"),
        ("create-volume --block --fs-type xfs", "--block goes with none of"),
        ("create-volume --from-snapshot a --from-volume b", "not allowed with"),
        ("create-volume --access-mode rwx", "invalid choice: 'rwx'"),
        ("list-volumes --max-entries many", "invalid int value"),
        ("list-volumes --max-entries 99999999999", "does not fit"),
        ("create-volume --requisite zone", "--requisite: 'zone' has no value"),
    ],
)
def test_a_wrong_command_line_asks_no_driver(run: Run, line: str, sentence: str) -> None:
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_driver_that_is_not_there(run: Run, tmp_path: Path) -> None:
    code, _, err = run(f"probe --endpoint {tmp_path}/none.sock --timeout 2")
    assert code == 114
    assert f"(driver at {tmp_path}/none.sock)" in err
    code, _, err = run("probe --endpoint tcp://127.0.0.1:1")
    assert code == 2
    assert "unix" in err


def test_it_is_a_command_of_volkit(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert volkit_main(["call", "--endpoint", endpoint, "get-plugin-info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "memory.csi.volkit.io"
    assert volkit_main(["call", "delete-volume", "--endpoint", endpoint]) == 103
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        volkit_main(["call", "--help"])
    assert caught.value.code == 0
    assert "create-volume" in capsys.readouterr().out


def test_adding_the_commands_loads_no_grpc() -> None:
    program = (
        "import sys; from volkit import cli; cli._add_adapters(cli._parser()[1]); "
        "print([m for m in ('grpc', 'google.protobuf', 'rich') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


# -- the client ----------------------------------------------------------------------------------------------


def test_the_client_has_the_rpcs_for_methods(endpoint: str) -> None:
    with Client(endpoint) as client:
        assert client.GetPluginInfo().vendor_version
        assert client.Probe(pb.ProbeRequest(), timeout=60).ready.value
        with pytest.raises(AttributeError, match="CSI has no RPC 'CreateVolumes'"):
            _ = client.CreateVolumes
        with pytest.raises(CallError) as caught:
            client.DeleteVolume()
        assert (caught.value.code, caught.value.number, caught.value.method) == (
            "INVALID_ARGUMENT",
            3,
            "DeleteVolume",
        )


def test_waiting_ends_when_its_time_is_over(tmp_path: Path) -> None:
    with Client(str(tmp_path / "none.sock")) as client, pytest.raises(CallError, match="UNAVAILABLE"):
        client.wait(0.3)


def test_a_socket_in_a_place_with_odd_characters(endpoint: str, tmp_path: Path) -> None:
    odd = tmp_path / "50% of a b"
    odd.mkdir()
    os.link(endpoint.removeprefix("unix://"), odd / "s.sock")
    with Client(str(odd / "s.sock")) as client:
        client.wait(60)


# -- answers -------------------------------------------------------------------------------------------------


def test_plain_values() -> None:
    snapshot = pb.Snapshot(size_bytes=1 << 60, snapshot_id="s")
    snapshot.creation_time.FromDatetime(datetime(2026, 1, 31, 12, tzinfo=UTC))
    capacity = pb.GetCapacityResponse(available_capacity=5)
    capacity.maximum_volume_size.value = 0
    assert show.plain(snapshot) == {
        "size_bytes": 1 << 60,
        "snapshot_id": "s",
        "source_volume_id": "",
        "creation_time": "2026-01-31T12:00:00Z",
        "ready_to_use": False,
        "group_snapshot_id": "",
    }
    assert show.plain(capacity) == {"available_capacity": 5, "maximum_volume_size": 0}
    assert show.plain(pb.ProbeResponse()) == {}
    node = pb.NodeServiceCapability()
    node.rpc.type = pb.NodeServiceCapability.RPC.STAGE_UNSTAGE_VOLUME
    assert show.plain(node) == {"rpc": {"type": "STAGE_UNSTAGE_VOLUME"}}
    assert show.plain(pb.Topology(segments={"zone": "a"})) == {"segments": {"zone": "a"}}


def test_lines_for_people_have_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    volume = pb.Volume(volume_id="[red]v[/red]", capacity_bytes=1 << 30, volume_context={"a": "[b]"})
    show.answer(pb.CreateVolumeResponse(volume=volume), False)
    out = capsys.readouterr().out
    assert "volume.volume_id: [red]v[/red]" in out
    assert "volume.capacity_bytes: 1Gi" in out
    assert "volume.volume_context: a=[b]" in out
    entry = pb.ListVolumesResponse.Entry(volume=volume)
    show.answer(pb.ListVolumesResponse(entries=[entry], next_token="more"), False)
    out = capsys.readouterr().out
    assert "[red]v[/red]" in out
    assert "next_token: more" in out
