"""Pods that read and write a bucket by real programs on a real server, while the driver, the program or the server is
killed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from volkit import InvalidArgument, NotFound, Unauthenticated, Unavailable
from volkit.host import mounts
from volkit.objects import Program

from .servers import ACCESS, SECRET, Rclone, Rgw, client, settings_of, wait_until
from .world import World, words_of

pytestmark = [pytest.mark.root, pytest.mark.needs("radosgw", "s3fs", "rclone")]
MIB = 1 << 20
PROGRAMS = (Program.S3FS, Program.RCLONE)
both = pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.value)


def bucket(rgw: Rgw, name: str) -> str:
    """A bucket that an administrator made, empty."""
    plain = client(rgw.port)
    plain.create_bucket(Bucket=name)
    for one in plain.list_objects_v2(Bucket=name).get("Contents", ()):
        plain.delete_object(Bucket=name, Key=one["Key"])
    return name


def stored(rgw: Rgw, name: str, key: str) -> bytes:
    body: bytes = client(rgw.port).get_object(Bucket=name, Key=key)["Body"].read()
    return body


@both
def test_what_a_pod_wrote_is_stored_when_it_ends(rgw: Rgw, tmp_path: Path, program: Program) -> None:
    world = World(tmp_path / "n1", settings_of(rgw, mounter=program, usage_age=0))
    name = bucket(rgw, f"pods-{program.value}")
    pod = world.publish(name)
    (pod / "dir").mkdir()
    (pod / "dir" / "ü b").write_bytes(b"x" * MIB)
    (directory,) = world.programs()
    pid = int((directory / "pid").read_text().split()[0])
    assert SECRET.encode() not in words_of(pid)
    keys = directory / "files" / "credentials"
    assert SECRET in keys.read_text()
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    world.unpublish(name)  # at once: waits until it is written
    assert stored(rgw, name, "dir/ü b") == b"x" * MIB
    world.assert_clean()
    for path in (world.base / "state").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    pod = world.publish(name, readonly=True)
    assert (pod / "dir" / "ü b").read_bytes() == b"x" * MIB
    with pytest.raises(OSError, match="Read-only"):
        (pod / "new").touch()
    assert world.stats(name).usage.used == MIB
    world.unpublish(name)
    world.assert_clean()


def test_a_part_of_a_bucket_and_whose_its_files_are(rgw: Rgw, tmp_path: Path) -> None:
    name = bucket(rgw, "parts")
    client(rgw.port).put_object(Bucket=name, Key="a/b/file", Body=b"inside")
    client(rgw.port).put_object(Bucket=name, Key="a/other", Body=b"outside")
    for program in PROGRAMS:
        world = World(tmp_path / program.value, settings_of(rgw, mounter=program))
        flags = ("uid=1234", "umask=007")
        pod = world.publish(f"{name}/a/b", mount_flags=flags, volume_mount_group="4321")
        assert [one.name for one in pod.iterdir()] == ["file"]
        found = (pod / "file").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode) & 0o007) == (1234, 4321, 0)
        world.unpublish(f"{name}/a/b")
        with pytest.raises(InvalidArgument, match="a mount option is not allowed") as error:
            world.publish(name, mount_flags=("passwd_file=/etc/shadow",))
        assert "shadow" not in str(error.value)
        with pytest.raises(NotFound):
            world.publish(f"{name}/nothing")
        world.assert_clean()


def test_each_pod_has_its_own_keys(rgw: Rgw, tmp_path: Path) -> None:
    """The second pod's are wrong, and the first one's mount does not help it."""
    world = World(tmp_path / "n1", settings_of(rgw, access_key="", secret_key=""))
    name = bucket(rgw, "keys")
    good = {"access.key": ACCESS, "secret.key": SECRET}  # as Huawei's cloud spells them
    (world.publish(name, "p1", secrets=good) / "file").write_text("x")
    with pytest.raises(Unauthenticated):
        world.publish(name, "p2", secrets={**good, "secret.key": "wrong"})
    with pytest.raises(Unauthenticated):
        world.publish(name, "p2", secrets={"accessKey": "unknown", "secretKey": "wrong"})
    with pytest.raises(Unauthenticated, match="belong together"):
        world.publish(name, "p2", secrets={"accessKey": ACCESS})
    assert not world.target("p2").exists()
    assert (world.publish(name, "p2", secrets=good) / "file").read_text() == "x"
    assert len(world.programs()) == 2
    for pod in ("p1", "p2"):
        world.unpublish(name, pod)
    world.assert_clean()


_DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from s3.servers import Server, settings_of
from s3.world import World
from volkit.objects import Program
server = Server(Path("/"))
server.port = {port}
world = World(Path({base!r}), settings_of(server, mounter=Program({program!r})))
world.publish({name!r})
print("published", flush=True)
sys.stdin.read()
"""


@both
def test_the_driver_is_killed_in_the_middle_of_a_write(rgw: Rgw, tmp_path: Path, program: Program) -> None:
    name = bucket(rgw, f"driver-{program.value}")
    base = tmp_path / "n1"
    tests = str(Path(__file__).parent.parent)
    words = {"tests": tests, "port": rgw.port, "base": str(base), "program": program.value, "name": name}
    code = _DRIVER.format(**words)
    driver = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert driver.stdin
    assert driver.stdout
    with driver.stdin, driver.stdout:
        assert driver.stdout.readline() == b"published\n"
        pod = base / "pods" / "p1" / "mount"
        digest = hashlib.sha256()
        with open(pod / "big", "wb") as file:
            for number in range(256):
                if number == 128:
                    os.killpg(driver.pid, signal.SIGKILL)
                    driver.wait()
                piece = os.urandom(MIB)
                digest.update(piece)
                file.write(piece)
    world = World(base, settings_of(rgw, mounter=program))  # as after an upgrade
    (pod / "after").write_text("still there")
    world.publish(name)
    assert len(world.programs()) == 1
    world.unpublish(name)
    assert hashlib.sha256(stored(rgw, name, "big")).hexdigest() == digest.hexdigest()
    assert stored(rgw, name, "after") == b"still there"
    world.assert_clean()


@both
def test_the_program_is_killed_in_the_middle_of_a_write(rgw: Rgw, tmp_path: Path, program: Program) -> None:
    world = World(tmp_path / "n1", settings_of(rgw, mounter=program))
    name = bucket(rgw, f"program-{program.value}")
    pod = world.publish(name)
    (pod / "before").write_text("kept")
    time.sleep(0 if program is Program.S3FS else 2)  # what was closed is written a second later
    with pytest.raises(OSError), open(pod / "big", "wb", buffering=0) as file:  # noqa: PT012
        file.write(b"x" * MIB)
        world.kill_program()
        file.write(b"x" * MIB)
    health = world.stats(name).health
    assert health.abnormal
    assert world.mend() == 1
    assert (pod / "before").read_text() == "kept"
    (pod / "after").write_text("works")
    assert not world.stats(name).health.abnormal
    world.unpublish(name)
    assert stored(rgw, name, "after") == b"works"
    world.assert_clean()


@both
def test_the_server_is_killed_in_the_middle_of_a_write(rgw: Rgw, tmp_path: Path, program: Program) -> None:
    """Of 256 MiB, while they reach it. What was written without an error is stored whole, and what was not, not in
    part.
    """
    world = World(tmp_path / "n1", settings_of(rgw, mounter=program, timeout=1.0))
    name, plain = bucket(rgw, f"server-{program.value}"), client(rgw.port)
    pod, content = world.publish(name), os.urandom(MIB) * 256
    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(error_of, lambda: (pod / "big").write_bytes(content))
        wait_until(
            lambda: plain.list_multipart_uploads(Bucket=name).get("Uploads"), "nothing reaches the server"
        )
        rgw.kill()
        rgw.start()
        refused = writing.result(timeout=240)
    wait_until(lambda: works(pod), "the mount does not recover")
    wait_until(lambda: is_unpublished(world, name), "what is written does not reach the server", 240)
    keys = {one["Key"] for one in plain.list_objects_v2(Bucket=name)["Contents"]}
    assert "after" in keys
    assert refused or "big" in keys
    if "big" in keys:
        assert stored(rgw, name, "big") == content
    world.assert_clean()


def test_an_outage_is_an_error_and_ends(rgw: Rgw, tmp_path: Path) -> None:
    """For what asks the server, in seconds; and all is well when it is back."""
    worlds = {
        one: World(tmp_path / one.value, settings_of(rgw, mounter=one, timeout=1.0)) for one in PROGRAMS
    }
    name = bucket(rgw, "outage")
    client(rgw.port).put_object(Bucket=name, Key="unread", Body=b"x" * MIB)
    pods = [world.publish(name) for world in worlds.values()]
    for pod in pods:
        (pod / "before").write_text("kept")
    rgw.kill()
    begun = time.monotonic()

    def read(pod: Path) -> tuple[OSError | None, float]:
        return error_of((pod / "unread").read_bytes), time.monotonic() - begun

    with ThreadPoolExecutor(2) as threads:
        for program, (error, seconds) in zip(worlds, threads.map(read, pods), strict=True):
            print(f"{program.value}: {error} after {seconds:.1f} s")
            assert error
            assert seconds < 120, "an outage is no error after two minutes"
    rgw.start()
    for pod in pods:
        wait_until(partial(works, pod), "the mount does not recover")
        assert (pod / "before").read_text() == "kept"
    for world in worlds.values():
        world.unpublish(name)
    for world in worlds.values():
        world.assert_clean()
    assert stored(rgw, name, "after") == b"works"


def is_unpublished(world: World, name: str) -> bool:
    """Not before all that was written is stored: the call is repeated until then."""
    try:
        world.unpublish(name)
    except Unavailable:
        return False
    return True


def works(pod: Path) -> bool:
    return error_of(lambda: (pod / "after").write_text("works")) is None


def error_of(call: Callable[[], object]) -> OSError | None:
    try:
        call()
    except OSError as error:
        return error
    return None


@both
def test_new_keys_reach_new_pods(rgw: Rgw, tmp_path: Path, program: Program) -> None:
    """Keys are exchanged: a running mount keeps those that it began with, also where its publish is repeated."""
    world = World(tmp_path / "n1", settings_of(rgw, access_key="", secret_key="", mounter=program))
    name = bucket(rgw, f"rotated-{program.value}")
    old, new = (
        rgw.key_of("volkit", f"{one}-{program.value}", f"{one}-secret-{program.value}")
        for one in ("old", "new")
    )
    client(rgw.port).put_object(Bucket=name, Key="before", Body=b"x")
    first = world.publish(name, "p1", secrets=old)
    assert os.listdir(first) == ["before"]
    second = world.publish(name, "p2", secrets=new)
    rgw.admin("key", "rm", "--uid=volkit", f"--access-key={old['accessKey']}")
    world.publish(name, "p1", secrets=new)
    refused = error_of((first / "before").read_text)  # s3fs has it empty then, and refuses to write alone
    assert refused or error_of(lambda: (first / "new").write_text("x"))
    (second / "after").write_text("y")
    with pytest.raises(Unauthenticated):
        world.publish(name, "p3", secrets=old)
    world.unpublish(name, "p1")
    first = world.publish(name, "p1", secrets=new)  # a new pod
    assert (first / "before").read_text() == "x"
    for pod in ("p1", "p2"):
        world.unpublish(name, pod)
    assert stored(rgw, name, "after") == b"y"
    world.assert_clean()


def test_two_nodes_write(rgw: Rgw, tmp_path: Path) -> None:
    nodes = [World(tmp_path / one, settings_of(rgw), one) for one in ("n1", "n2")]
    name = bucket(rgw, "nodes")
    pods = [node.publish(name) for node in nodes]
    for number, pod in enumerate(pods):
        for file in range(5):
            (pod / f"{number}-{file}").write_text(f"{number}-{file}")
    wanted = {f"{number}-{file}" for number in range(2) for file in range(5)}
    wait_until(lambda: all(set(os.listdir(pod)) == wanted for pod in pods), "a node does not see all files")
    assert all((pod / one).read_text() == one for pod in pods for one in wanted)
    for node in nodes:
        node.unpublish(name)
        assert not mounts.mounts(under=str(node.base))


def test_on_rclones_server_too(rclone_server: Rclone, tmp_path: Path) -> None:
    """Prefixes in a shared bucket, on a server that keeps neither tags nor versions, nor directories in a prefix."""
    world = World(tmp_path / "n1", settings_of(rclone_server, mounter=Program.RCLONE, shared=True))
    plain = client(rclone_server.port)
    first = world.create("first", mode="prefix", onDelete="purge")
    key = f"{first.id.partition('/')[2]}/file"
    plain.put_object(Bucket="shared", Key=key, Body=b"content")
    copy = world.create("copy", first.id, mode="prefix", onDelete="purge")
    pod = world.publish(copy.id)
    assert (pod / "file").read_text() == "content"
    world.unpublish(copy.id)
    for volume in (first, copy):
        world.delete(volume.id)
    assert "Contents" not in plain.list_objects_v2(Bucket="shared")
    pod = world.publish("shared")
    (pod / "file").write_text("written")
    world.unpublish("shared")
    assert plain.get_object(Bucket="shared", Key="file")["Body"].read() == b"written"
    world.assert_clean()
