"""`volkit volumes` and `volkit top` on real volumes: states, sizes, pods, containers; as a table, JSON, a picture."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volkit import cli, inventory, status
from volkit import requests as r
from volkit.cli import volumes
from volkit.cli.volumes import rounded
from volkit.engine import Engine
from volkit.errors import Unavailable
from volkit.host import loop, mounts
from volkit.host.mounts import parse_mountinfo
from volkit.inventory import User
from volkit.journal import key
from volkit.model import Capability, CapacityRange
from volkit.publishing import user_of
from volkit.registry import load_backend
from volkit.testing.memory import MemoryBackend, MemorySettings

CONTAINER = "c0ffee" + "0" * 58
UID = "0a1b2c3d-1111-2222-3333-444455556666"
MIB = 1 << 20
EXT4 = Capability(fs_type="ext4")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The commands set their process's logging up; here it is that of all tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    (tmp_path / "pool").mkdir()
    backend = load_backend("loop")
    made = Engine(
        backend, backend.settings(pool=tmp_path / "pool"), state_dir=tmp_path / "state", node_id="n1"
    )
    try:
        yield made
    finally:
        for entry in made.node_journal.scan(key("target", "")):
            volume_id = entry.key.split("/")[1]
            made.run(
                "node_unpublish", r.NodeUnpublishRequest(volume_id=volume_id, target_path=entry.value["path"])
            )
        for entry in made.node_journal.scan(key("stage", "")):
            volume_id = entry.key.split("/")[1]
            made.run(
                "node_unstage",
                r.NodeUnstageRequest(volume_id=volume_id, staging_target_path=entry.value["path"]),
            )
        made.close()
        assert mounts.mounts(under=str(tmp_path)) == []
        assert loop.find(str(tmp_path / "pool")) == []


def create(engine: Engine, name: str) -> Any:
    wanted: r.CreateVolumeRequest[Any] = r.CreateVolumeRequest(
        name=name, parameters={}, capabilities=(EXT4,), capacity_range=CapacityRange(required=16 * MIB)
    )
    return engine.run("create_volume", wanted)


def stage(engine: Engine, volume: Any, tmp_path: Path) -> str:
    path = str(tmp_path / "staging" / volume.id)
    os.makedirs(path, exist_ok=True)
    wanted = r.NodeStageRequest(
        volume_id=volume.id, staging_target_path=path, capability=EXT4, volume_context=volume.context
    )
    engine.run("node_stage", wanted)
    return path


def publish(engine: Engine, volume: Any, staged: str, target: Path, **metadata: str) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = r.NodePublishRequest(
        volume_id=volume.id,
        target_path=str(target),
        staging_target_path=staged,
        capability=EXT4,
        metadata=metadata,
    )
    engine.run("node_publish", wanted)
    return str(target)


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Start what looks like one: a mount namespace of its own, with an engine's file at /etc/hostname and a volume."""
    started: list[subprocess.Popen[bytes]] = []

    def start(volume: str) -> None:
        (tmp_path / "box").mkdir()
        file = tmp_path / "containers" / CONTAINER / "hostname"
        file.parent.mkdir(parents=True)
        file.write_text("box\n")
        # a new namespace has copies of everybody's mounts, which would keep their devices busy: only ours stay
        kept = f"/|/proc*|/sys*|/dev*|/etc/hostname|{tmp_path}/*"
        words = (
            f"mount --bind {file} /etc/hostname && mount --bind {volume} {tmp_path}/box && "
            "for one in $(cut -d' ' -f5 /proc/self/mountinfo); do "
            f"case $one in {kept}) ;; *) umount -l $one 2>/dev/null;; esac; done; echo up"
        )
        process = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", f"{words} && exec sleep 600"],
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.root
@pytest.mark.copies_mounts
@pytest.mark.needs("mkfs.ext4", "unshare")
def test_every_volume_with_its_state_its_size_and_its_users(
    engine: Engine, tmp_path: Path, container: Callable[[str], None]
) -> None:
    idle, staged, used = (create(engine, name) for name in ("idle", "staged", "used"))
    stage(engine, staged, tmp_path)
    place = stage(engine, used, tmp_path)
    target = tmp_path / "kubelet/pods" / UID / "volumes/kubernetes.io~csi/pv/mount"
    told = {
        "csi.storage.k8s.io/pod.name": "web-0",
        "csi.storage.k8s.io/pod.namespace": "shop",
        "csi.storage.k8s.io/pod.uid": UID,
        "csi.storage.k8s.io/serviceAccount.tokens": "hunter2",
    }
    published = publish(engine, used, place, target, **told)
    assert "hunter2" not in json.dumps([entry.value for entry in engine.node_journal.scan("")])
    container(published)
    found = inventory.take(engine)
    assert found.notes == []
    assert [(one.name, one.state) for one in found.volumes] == [
        ("idle", "created"),
        ("staged", "staged"),
        ("used", "published"),
    ]
    first, second, third = found.volumes
    assert [one.size for one in found.volumes] == [16 * MIB] * 3
    assert first.used is None
    assert second.used is not None
    assert third.used is not None
    assert 0 < third.used < 16 * MIB
    assert (first.id, first.users) == (idle.id, [])
    assert second.staged == str(tmp_path / "staging" / staged.id)
    assert second.users == [], "a copy of all mounts is no use of them"
    assert third.published == [published]
    pod, box = third.users
    assert pod == User(kind="pod", name="web-0", namespace="shop", uid=UID, path=published)
    assert pod.shown == "shop/web-0"
    assert (box.kind, box.id) == ("container", CONTAINER)


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
def test_a_pod_is_known_by_kubelets_path_alone_also_where_kubelet_bound_it_itself(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = create(engine, "flex")
    staged = stage(engine, volume, tmp_path)
    pod = tmp_path / "kubelet/pods" / UID / "volumes/acme~loop/flex"
    pod.mkdir(parents=True)
    mounts.bind(staged, str(pod))
    try:
        [item] = inventory.take(engine).volumes
        assert (item.state, item.published) == ("staged", [])
        assert item.users == [User(kind="pod", uid=UID, path=str(pod))]
        monkeypatch.setattr(inventory, "POD_LOGS", str(tmp_path / "logs"))
        (tmp_path / f"logs/shop_web-0_{UID}").mkdir(parents=True)
        [item] = inventory.take(engine).volumes
        assert [one.shown for one in item.users] == ["shop/web-0"], "kubelet's logs have its name"
    finally:
        mounts.unmount(str(pod))


def test_no_more_is_recorded_of_a_pod_than_who_it_is() -> None:
    told = {
        "csi.storage.k8s.io/pod.name": "web-0" * 100,
        "csi.storage.k8s.io/serviceAccount.tokens": "hunter2",
        "kubernetes.io/pod.uid": UID,
        "kubernetes.io/secret/password": "hunter3",
        "csi.storage.k8s.io/ephemeral": "false",
    }
    assert user_of(told) == {"pod.name": ("web-0" * 100)[:256], "pod.uid": UID}
    assert user_of({}) == {}


def test_a_container_is_known_by_its_cgroup_and_its_pod_too() -> None:
    pod = UID.replace("-", "_")
    kubernetes = f"0::/kubepods.slice/kubepods-pod{pod}.slice/cri-containerd-{CONTAINER}.scope\n"
    docker = f"0::/system.slice/docker-{CONTAINER}.scope\n"
    service = "0::/system.slice/sshd.service\n"
    assert [inventory._container_of(one, []) for one in (kubernetes, docker, service)] == [
        CONTAINER,
        CONTAINER,
        "",
    ]
    line = f"1 2 0:3 /var/lib/docker/containers/{CONTAINER}/hostname /etc/hostname rw - ext4 /dev/sda rw\n"
    assert inventory._container_of(service, parse_mountinfo(line.encode())) == CONTAINER
    assert inventory._CGROUP_POD.search(kubernetes)[1].replace("_", "-") == UID  # type: ignore[index]


def test_a_storage_that_is_away_is_a_note_and_the_rest_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = MemorySettings(array=tmp_path.name, root=tmp_path / "root")
    engine = Engine(MemoryBackend, settings, state_dir=tmp_path / "state", node_id="n1")
    wanted: r.CreateVolumeRequest[Any] = r.CreateVolumeRequest(
        name="a", parameters={}, capabilities=(Capability(),)
    )
    volume = engine.run("create_volume", wanted)
    controller: Any = engine.controller
    engine.run(
        "controller_publish",
        r.ControllerPublishRequest(volume_id=volume.id, node_id="n7", capability=Capability()),
    )

    def away(request: Any) -> Any:
        raise Unavailable("no route to the array")

    monkeypatch.setattr(controller, "list_volumes", away)
    found = inventory.take(engine)
    assert [(one.name, one.size, one.attached, one.state) for one in found.volumes] == [
        ("a", None, ["n7"], "attached")
    ]
    assert found.notes == ["the storage cannot be looked at: no route to the array"]
    engine.close()


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0"),
        (4096, "4Ki"),
        (16 * MIB, "16Mi"),
        (47990071296, "44.7Gi"),
        (1000 * MIB, "1000Mi"),
        (1 << 63, "8192Pi"),
    ],
)
def test_sizes_are_rounded_for_people(size: int, shown: str) -> None:
    assert rounded(size) == shown


# -- the commands --------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
def test_volumes_as_a_table_as_json_and_as_a_picture(
    engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = create(engine, "pvc-<1>")
    target = tmp_path / "kubelet/pods" / UID / "volumes/kubernetes.io~csi/pv/mount"
    told = {"csi.storage.k8s.io/pod.name": "web-0", "csi.storage.k8s.io/pod.namespace": "shop & co"}
    publish(engine, volume, stage(engine, volume, tmp_path), target, **told)
    create(engine, "other")
    flags = [
        "--backend",
        "loop",
        "-o",
        f"pool={tmp_path}/pool",
        "--state-dir",
        f"{tmp_path}/state",
        "--node-id",
        "n1",
    ]

    def run(*words: str) -> str:
        assert cli.main(["volumes", *flags, *words]) == 0
        out, err = capsys.readouterr()
        assert err == "", "no progress where nobody looks"
        return out

    table = run()
    assert "shop & co/web-0" in table
    assert "pvc-<1>" in table
    rows = json.loads(run("--json"))
    assert rows["node"] == "n1"
    assert [(one["name"], one["state"]) for one in rows["volumes"]] == [
        ("other", "created"),
        ("pvc-<1>", "published"),
    ]
    assert rows["volumes"][1]["users"][0]["name"] == "web-0"
    run("--graph", f"{tmp_path}/who.svg")
    root = ET.parse(tmp_path / "who.svg").getroot()
    shown = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"pvc-<1>, 16Mi", "other, 16Mi", "n1", "shop & co/web-0"} <= shown
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 2
    assert run("--graph", "-").startswith("<svg ")


def test_volumes_of_a_pool_that_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pool").mkdir()
    flags = ["--backend", "loop", "-o", f"pool={tmp_path}/pool", "--state-dir", f"{tmp_path}/state"]
    assert cli.main(["volumes", *flags]) == 0
    assert capsys.readouterr().out == "There are no volumes.\n"


def test_watching_ends_with_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    words = [sys.executable, "-m", "volkit.cli", "volumes", "--watch", "--backend", "loop"]
    words += ["-o", f"pool={tmp_path}/pool", "--state-dir", f"{tmp_path}/state"]
    ours, theirs = os.openpty()
    watching = subprocess.Popen(
        words, stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    try:
        seen = b""
        while b"Volume" not in seen:
            seen += os.read(ours, 1 << 16)
        watching.send_signal(signal.SIGINT)
        with suppress(OSError):  # EIO: the other end is closed
            while os.read(ours, 1 << 16):
                pass
        _, err = watching.communicate(timeout=60)
        assert (watching.returncode, err) == (0, b"")
    finally:
        watching.kill()
        watching.communicate()
        os.close(ours)


def test_ctrl_c_ends_watching_also_at_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(engine: Engine) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inventory, "take", interrupted)
    settings = MemorySettings(array=tmp_path.name, root=tmp_path / "root")
    engine = Engine(MemoryBackend, settings, state_dir=tmp_path / "state", node_id="n1")
    assert volumes._watch(engine) == 0


def test_top_shows_what_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = MemorySettings(array=tmp_path.name, root=tmp_path / "root")
    engine = Engine(MemoryBackend, settings, state_dir=tmp_path / "state", node_id="n1")
    engine.watch()
    begun, go = threading.Event(), threading.Event()
    controller: Any = engine.controller

    def slow(request: Any) -> Any:
        begun.set()
        assert go.wait(30)
        raise Unavailable("later")

    monkeypatch.setattr(controller, "list_volumes", slow)
    engine.run("get_capacity", r.CapacityRequest(parameters={}))

    def ask() -> None:
        with pytest.raises(Unavailable):
            engine.run("list_volumes", r.ListRequest())

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert begun.wait(30)
        assert cli.main(["top", "--state-dir", f"{tmp_path}/state"]) == 0
        shown = capsys.readouterr().out
        assert "list_volumes" in shown.partition("Operation")[0]
        assert "get_capacity" in shown.partition("Operation")[2]
        assert cli.main(["top", "--state-dir", f"{tmp_path}/state", "--json"]) == 0
        [told] = json.loads(capsys.readouterr().out)
        assert [one["operation"] for one in told["calls"]] == ["list_volumes"]
    finally:
        go.set()
        asking.join(30)
        engine.close()
    assert cli.main(["top", "--state-dir", f"{tmp_path}/state"]) == 1
    assert "no driver answers" in capsys.readouterr().err
    assert cli.main(["top", "--interval", "never"]) == 2
    assert status.running(tmp_path / "state") == []


def on_a_terminal(words: list[str]) -> tuple[int, str]:
    """The exit code, and what a person sees on stderr."""
    ours, theirs = os.openpty()
    done = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # EIO: the other end is closed
            part = b""
        if not part:
            break
        seen += part
    os.close(ours)
    return done.wait(60), seen.decode()


def test_long_work_shows_its_progress_on_a_terminal_and_nothing_in_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    flags = ["--backend", "loop", "-o", f"pool={tmp_path}/pool", "--state-dir", f"{tmp_path}/state"]
    words = [sys.executable, "-m", "volkit.cli", "recover", *flags]
    code, seen = on_a_terminal(words)
    assert code == 0
    assert "settling what is unfinished" in seen
    piped = subprocess.run(words, capture_output=True, text=True, check=True)
    assert piped.stderr == ""
