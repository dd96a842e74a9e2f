"""A real driver, watched from outside: metrics, health, the log, traces, what runs, and who uses what."""

from __future__ import annotations

import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from volkit import Engine, inventory, load_backend
from volkit_flex.service import Service

from .conftest import Drivers
from .driver import START_SECONDS, Driver
from .orchestrator import MIB, Orchestrator, capability

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]
VOLKIT = Path(sys.executable).with_name("volkit")
EXT4 = capability("ext4")
FreePorts = Callable[[int], list[int]]


@pytest.fixture
def collector() -> Iterator[tuple[int, list[bytes]]]:
    """An OpenTelemetry collector, as far as a driver sees one: its port, and what it got."""
    got: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with closing(server.socket):
        yield server.server_port, got
        server.shutdown()


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def volkit(driver: Driver, command: str, *words: str) -> Any:
    flags = ["--state-dir", str(driver.state)]
    if command == "volumes":
        flags += ["--backend", "loop", "-o", f"pool={driver.pool}", "-o", "overcommit=100", "--node-id", "n1"]
    done = subprocess.run(
        [VOLKIT, command, *flags, *words, "--json"], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)


def test_a_driver_is_seen_from_all_sides(
    drivers: Drivers, collector: tuple[int, list[bytes]], free_ports: FreePorts
) -> None:
    (port,), (traces, got) = free_ports(1), collector
    words = ["--metrics", f"127.0.0.1:{port}", "--traces", f"http://127.0.0.1:{traces}/v1/traces"]
    driver = drivers(arguments=[*words, "--log-format", "json"]).start()
    co = Orchestrator(driver.client, driver.home)
    volume = co.create("pvc-1", 16 * MIB, EXT4)
    used = co.use(volume, EXT4, pod="kubelet")
    assert get(port, "/healthz") == (200, "ok\n")
    assert get(port, "/readyz") == (200, "ok\n")
    text = get(port, "/metrics")[1]
    for line in (
        'volkit_operations_total{backend="loop",code="OK",operation="node_stage"} 1.0',
        'volkit_mounts{backend="loop",kind="target"} 1.0',
        'volkit_volumes{backend="loop",state="published"} 1.0',
        'volkit_ready{backend="loop"} 1.0',
    ):
        assert line in text
    assert "process_resident_memory_bytes" in text
    [told] = volkit(driver, "top")
    assert driver.process is not None
    assert (told["pid"], told["backend"]) == (driver.process.pid, "loop")
    assert told["operations"]["create_volume"]["ended"] == 1
    [row] = volkit(driver, "volumes")["volumes"]
    assert (row["name"], row["state"], row["published"]) == ("pvc-1", "published", [str(used.target)])
    co.unuse(used)
    co.delete(volume.volume_id)
    driver.stop()
    assert b"volkit.node_stage" in b"".join(got), "the traces are sent before the driver ends"
    lines = [json.loads(line) for line in driver.text().splitlines() if line.startswith("{")]
    operations = [line for line in lines if line["logger"] == "volkit.operation"]
    assert [line["operation"] for line in operations] == [
        *("create_volume", "node_stage", "node_publish", "node_unpublish", "node_unstage", "delete_volume"),
    ]
    assert {line["node"] for line in operations} == {"n1"}
    assert len({line["request"] for line in operations}) == len(operations)
    assert list((driver.state / "status").iterdir()) == []


@pytest.mark.parametrize("command", ["volkit-csi", "volkit-docker", "volkit-flex"])
def test_every_driver_that_goes_on_running_is_watched_alike(
    command: str, tmp_path: Path, free_ports: FreePorts
) -> None:
    (tmp_path / "pool").mkdir()
    (port,), state = free_ports(1), tmp_path / "state"
    own = {
        "volkit-csi": ["--endpoint", f"unix://{tmp_path}/csi.sock"],
        "volkit-docker": ["--socket", f"{tmp_path}/docker.sock"],
        "volkit-flex": ["--plugin-dir", f"{tmp_path}/exec", "--vendor", "acme"],
    }[command]
    words = [str(VOLKIT.with_name(command)), *(["serve"] if command == "volkit-flex" else [])]
    words += ["--backend", "loop", "-o", f"pool={tmp_path}/pool", "--state-dir", str(state), *own]
    with (tmp_path / "log").open("wb") as log:
        serving = subprocess.Popen([*words, "--metrics", f"127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError):
                assert get(port, "/readyz") == (200, "ok\n")
                break
            assert serving.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert 'volkit_build_info{backend="loop"' in get(port, "/metrics")[1]
        done = subprocess.run(
            [VOLKIT, "top", "--state-dir", state, "--json"], capture_output=True, text=True, check=True
        )
        assert [one["pid"] for one in json.loads(done.stdout)] == [serving.pid]
        serving.terminate()
        assert serving.wait(60) == 0, (tmp_path / "log").read_text()
    finally:
        serving.kill()
        serving.wait()


def test_flexvolume_tells_for_which_pod_a_volume_is(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    backend = load_backend("loop")
    settings = backend.settings(pool=tmp_path / "pool")
    engine = Engine(backend, settings, state_dir=tmp_path / "state", node_id="n1")
    service = Service(engine, attaches=False)
    uid = "0a1b2c3d-1111-2222-3333-444455556666"
    target = tmp_path / f"kubelet/pods/{uid}/volumes/acme~loop/v"
    target.mkdir(parents=True)
    options = {
        "volume": "v",
        "size": "16Mi",
        "kubernetes.io/fsType": "ext4",
        "kubernetes.io/readwrite": "rw",
        "kubernetes.io/pod.name": "web-0",
        "kubernetes.io/pod.namespace": "shop",
        "kubernetes.io/pod.uid": uid,
        "kubernetes.io/serviceAccount.name": "default",
        "kubernetes.io/pvOrVolumeName": "v",
        "kubernetes.io/secret/key": "aHVudGVyMg==",
    }
    try:
        answer = service.handle(["mount", str(target), json.dumps(options)])
        assert answer["status"] == "Success", answer
        [item] = inventory.take(engine).volumes
        [user] = item.users
        assert (item.state, user.kind, user.shown, user.uid) == ("published", "pod", "shop/web-0", uid)
        assert "hunter2" not in json.dumps([entry.value for entry in engine.node_journal.scan("")])
    finally:
        service.handle(["unmount", str(target)])
        engine.close()


def test_what_a_killed_driver_leaves_is_cleared_by_the_next_one(driver: Driver) -> None:
    assert driver.process is not None
    first = driver.process.pid
    driver.process.send_signal(signal.SIGKILL)
    driver.wait_dead()
    assert [one.name for one in (driver.state / "status").iterdir()] == [f"{first}.sock"]
    driver.start()
    assert [one.name for one in (driver.state / "status").iterdir()] == [f"{driver.process.pid}.sock"]


def test_an_address_that_is_taken_is_said_in_one_sentence(drivers: Drivers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        driver = drivers(arguments=["--metrics", address])
        with pytest.raises(AssertionError, match="cannot listen there"):
            driver.start()
    assert driver.wait_dead() == 1
