"""The plugin's answers, to good calls and to bad ones, with the loop backend behind it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import Connection, Plugin, wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]


def create(plugin: Plugin, name: str = "v", **options: str) -> None:
    plugin.ok("VolumeDriver.Create", {"Name": name, "Opts": {"size": "16Mi", **options}})


def test_a_volume_from_create_to_remove(plugin: Plugin) -> None:
    assert plugin.ok("Plugin.Activate") == {"Implements": ["VolumeDriver"]}
    assert plugin.ok("VolumeDriver.Capabilities") == {"Capabilities": {"Scope": "local"}}
    assert plugin.ok("VolumeDriver.List") == {"Volumes": [], "Err": ""}
    create(plugin)
    create(plugin)  # Docker asks again where an answer was lost
    (listed,) = plugin.ok("VolumeDriver.List")["Volumes"]
    assert (listed["Name"], listed["Mountpoint"]) == ("v", "")
    assert listed["CreatedAt"].endswith("Z")
    path = plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "one"})["Mountpoint"]
    assert plugin.ok("VolumeDriver.Path", {"Name": "v"})["Mountpoint"] == path
    Path(path, "file").write_text("content")
    found = plugin.ok("VolumeDriver.Get", {"Name": "v"})["Volume"]
    assert found["Mountpoint"] == path
    status = found["Status"]
    assert (status["backend"], status["state"], status["mounts"]) == ("loop", "published", 1)
    assert status["size"] == "16Mi"
    assert status["holders"] == {"one": 1}
    assert status["used"]
    plugin.ok("VolumeDriver.Unmount", {"Name": "v", "ID": "one"})
    assert plugin.mounted() == []
    assert plugin.ok("VolumeDriver.Get", {"Name": "v"})["Volume"]["Mountpoint"] == ""
    path = plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "two"})["Mountpoint"]
    assert Path(path, "file").read_text() == "content"
    plugin.ok("VolumeDriver.Unmount", {"Name": "v", "ID": "two"})
    for _ in range(2):
        plugin.ok("VolumeDriver.Remove", {"Name": "v"})
    status_code, answer = plugin.call("VolumeDriver.Get", {"Name": "v"})
    assert (status_code, answer["Err"]) == (500, "no such volume: v")


def test_options(plugin: Plugin) -> None:
    create(plugin, "xfs", size="320Mi", fsType="xfs", mountOptions="noatime,nodiratime")
    create(plugin, "ro", readonly="true")
    path = plugin.ok("VolumeDriver.Mount", {"Name": "xfs", "ID": "1"})["Mountpoint"]
    (line,) = [one for one in Path("/proc/mounts").read_text().splitlines() if f" {path} " in one]
    assert " xfs " in line
    assert "noatime" in line
    path = plugin.ok("VolumeDriver.Mount", {"Name": "ro", "ID": "1"})["Mountpoint"]
    with pytest.raises(OSError, match="Read-only"):
        Path(path, "file").touch()
    for name in ("xfs", "ro"):
        plugin.ok("VolumeDriver.Unmount", {"Name": name, "ID": "1"})
    create(plugin, "first")
    create(plugin, "copy", **{"clone-of": "first"})
    for bad, said in (
        ({"flavour": "x"}, "unknown option 'flavour': valid are size, fs-type, mount-options"),
        ({"size": "many"}, "is not a size"),
        ({"readonly": "perhaps"}, "write true or false"),
        ({"clone-of": "first", "from-snapshot": "s"}, "give from-snapshot or clone-of"),
        ({"fsType": "ntfs"}, "ntfs"),
        ({"clone-of": "nothing"}, "no volume 'nothing'"),
    ):
        status, answer = plugin.call("VolumeDriver.Create", {"Name": "bad", "Opts": bad})
        assert status in (400, 500)
        assert said in answer["Err"]
    assert plugin.call("VolumeDriver.Get", {"Name": "bad"})[0] == 500


def test_the_same_user_twice_and_a_second_one(plugin: Plugin) -> None:
    """`docker cp` on a running container: a second Mount and an Unmount with the same ID."""
    create(plugin)
    path = plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "a"})["Mountpoint"]
    assert plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "a"})["Mountpoint"] == path
    assert plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "b"})["Mountpoint"] == path
    for who in ("a", "b"):
        plugin.ok("VolumeDriver.Unmount", {"Name": "v", "ID": who})
        assert path in plugin.mounted()
    plugin.ok("VolumeDriver.Unmount", {"Name": "v", "ID": "a"})
    assert plugin.mounted() == []
    plugin.ok("VolumeDriver.Unmount", {"Name": "v", "ID": "a"})  # and once too often


def test_a_volume_in_use_is_not_removed(plugin: Plugin) -> None:
    create(plugin)
    plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "a"})
    status, answer = plugin.call("VolumeDriver.Remove", {"Name": "v"})
    assert status == 500
    assert "is used by a" in answer["Err"]
    plugin.ok("VolumeDriver.Unmount", {"Name": "v", "ID": "a"})
    plugin.ok("VolumeDriver.Remove", {"Name": "v"})


def test_kill_and_start_keep_the_mounts_and_the_users(plugin: Plugin) -> None:
    create(plugin)
    path = plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "a"})["Mountpoint"]
    Path(path, "file").write_text("content")
    plugin.kill()
    assert Path(path, "file").read_text() == "content"
    plugin.start()
    found = plugin.ok("VolumeDriver.Get", {"Name": "v"})["Volume"]
    assert (found["Mountpoint"], found["Status"]["holders"]) == (path, {"a": 1})
    plugin.ok("VolumeDriver.Unmount", {"Name": "v", "ID": "a"})
    assert plugin.mounted() == []
    plugin.stop()
    assert not Path(plugin.socket).exists()
    plugin.start()


def test_what_nobody_holds_goes_after_its_grace(tmp_path: Path) -> None:
    """A daemon that was killed repeats Mount without Unmount; a Mount that timed out is never followed by one."""
    plugin = Plugin(tmp_path / "p", f"vg{os.getpid()}", grace=1.0, settle=0.2).start()
    try:
        create(plugin)
        for _ in range(3):
            plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "lost"})
        get = {"Name": "v"}
        wait_until(
            "it is forgotten", lambda: not plugin.ok("VolumeDriver.Get", get)["Volume"]["Status"]["holders"]
        )
        assert plugin.mounted() == []
        plugin.ok("VolumeDriver.Unmount", {"Name": "v", "ID": "lost"})
        plugin.ok("VolumeDriver.Remove", {"Name": "v"})
    finally:
        plugin.end()


NAMES = [
    "with space",
    "a/b",
    "../up",
    "Ünï-日本",
    "UPPER",
    "upper",
    ".dot",
    "a'b\"c;d",
    "n" * 255,
    "%2F",
    "-dash",
]


def test_names_of_every_sort_are_volumes_of_their_own(plugin: Plugin) -> None:
    for name in NAMES:
        create(plugin, name, size="1Mi")
    listed = [one["Name"] for one in plugin.ok("VolumeDriver.List")["Volumes"]]
    assert sorted(listed) == sorted(NAMES)
    for name in NAMES:
        assert plugin.ok("VolumeDriver.Get", {"Name": name})["Volume"]["Name"] == name
        plugin.ok("VolumeDriver.Remove", {"Name": name})
    assert plugin.ok("VolumeDriver.List")["Volumes"] == []


def test_creates_of_one_name_at_once_make_one(plugin: Plugin) -> None:
    answers: list[tuple[int, dict[str, Any]]] = []

    def work() -> None:
        answers.append(plugin.call("VolumeDriver.Create", {"Name": "v", "Opts": {"size": "1Mi"}}))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [answer for status, answer in answers if status != 200] == []
    assert len(plugin.ok("VolumeDriver.List")["Volumes"]) == 1


def test_two_hundred_volumes(plugin: Plugin) -> None:
    for number in range(200):
        create(plugin, f"v{number}", size="1Mi")
    plugin.kill()
    plugin.start()
    assert len(plugin.ok("VolumeDriver.List")["Volumes"]) == 200
    for number in range(200):
        plugin.ok("VolumeDriver.Remove", {"Name": f"v{number}"})


@pytest.mark.parametrize(
    ("method", "body", "status", "said"),
    [
        ("VolumeDriver.Create", b"{", 400, "is not JSON"),
        ("VolumeDriver.Create", b"[]", 400, "is a list, not an object"),
        ("VolumeDriver.Create", b"[" * 100_000, 400, "is not JSON"),
        ("VolumeDriver.Create", b'{"Name": "\xff"}', 400, "is not JSON"),
        ("VolumeDriver.Create", b'{"Name": "\\ud800"}', 400, "Name is no text in UTF-8"),
        ("VolumeDriver.Create", b'{"Name": "v", "Opts": {"size": "\\ud800"}}', 400, "Opts is not an object"),
        ("VolumeDriver.Create", b'{"Name": "v", "Opts": {"fs-type": "../x"}}', 400, "../x"),
        ("VolumeDriver.Create", b'{"Name": "%s"}' % (b"n" * 5000), 400, "at most 4096 characters"),
        ("VolumeDriver.Create", b'{"Name": "%s"}' % (b"n" * 300), 400, "name"),
        ("VolumeDriver.Create", b"null", 400, "Name is missing"),
        ("VolumeDriver.Get", b'{"Name": "a\\u0000b"}', 400, "name"),
        ("VolumeDriver.Unmount", b'{"Name": "v", "ID": ["x"]}', 400, "ID is list"),
        ("VolumeDriver.Create", b"", 400, "came without a body"),
        ("VolumeDriver.Mount", b"", 400, "came without a body"),
        ("VolumeDriver.Remove", b"  ", 400, "came without a body"),
        ("VolumeDriver.Create", b"{}", 400, "Name is missing"),
        ("VolumeDriver.Create", b'{"Name": 7}', 400, "Name is int"),
        ("VolumeDriver.Create", b'{"Name": "v", "Opts": ["size"]}', 400, "Opts is not an object"),
        ("VolumeDriver.Create", b'{"Name": "v", "Opts": {"size": 5}}', 400, "Opts is not an object"),
        ("VolumeDriver.Create", b'{"Name": "a\\u0000b"}', 400, "name"),
        ("VolumeDriver.Mount", b'{"Name": "v"}', 400, "ID is missing"),
        ("VolumeDriver.Nonsense", b"{}", 404, "there is no"),
        ("../etc/passwd", b"{}", 404, "there is no"),
        ("VolumeDriver.Get", b'{"Name": "none"}', 500, "no such volume: none"),
        ("VolumeDriver.Mount", b'{"Name": "none", "ID": "1"}', 500, "no such volume: none"),
    ],
)
def test_bad_calls_touch_nothing(plugin: Plugin, method: str, body: bytes, status: int, said: str) -> None:
    code, answer = plugin.call(method, body=body)
    assert code == status, answer
    assert said in answer["Err"]
    assert plugin.ok("VolumeDriver.List")["Volumes"] == []
    assert plugin.mounted() == []


def test_bad_http(plugin: Plugin) -> None:
    connection = Connection(plugin.socket)
    connection.request("GET", "/VolumeDriver.List")
    answer = connection.getresponse()
    assert answer.status == 405
    assert "use POST" in json.loads(answer.read())["Err"]
    connection.close()
    connection = Connection(plugin.socket)
    connection.putrequest("POST", "/VolumeDriver.Create")
    connection.putheader("Content-Length", str(1 << 30))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert "at most 1048576 are taken" in json.loads(answer.read())["Err"]
    connection.close()
    for head, status in (
        (b"POST /VolumeDriver.List HTTP/1.1\r\nHost: \r\nContent-Length: -5\r\n\r\n", b"400"),
        (b"POST /VolumeDriver.List HTTP/1.1\r\nHost: \r\nContent-Length: many\r\n\r\n", b"400"),
        (b"POST /VolumeDriver.List HTTP/1.1\r\nHost: \r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b"413"),
        (b"nonsense\r\n\r\n", b"400"),
    ):
        connection = Connection(plugin.socket)
        connection.connect()
        connection.sock.sendall(head)
        told = b""
        while b'"Err"' not in told:
            told += connection.sock.recv(4096) or b'hung up: "Err"'
        assert told.split()[1] == status, told
        connection.close()
    assert plugin.ok("VolumeDriver.List")["Volumes"] == []


def test_an_empty_host_and_a_connection_that_is_kept(plugin: Plugin) -> None:
    """As dockerd writes it."""
    connection = Connection(plugin.socket)
    for _ in range(3):
        connection.putrequest("POST", "/VolumeDriver.List", skip_host=True)
        connection.putheader("Host", "")
        connection.putheader("Accept", "application/vnd.docker.plugins.v1.2+json")
        connection.putheader("Content-Length", "2")
        connection.endheaders(b"{}")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.getheader("Content-Type") == "application/vnd.docker.plugins.v1.1+json"
        assert json.loads(answer.read())["Volumes"] == []
    connection.close()


def test_the_socket_is_for_root_alone(plugin: Plugin) -> None:
    found = os.stat(plugin.socket)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_uid == 0


def test_a_second_plugin_on_its_socket_is_refused(plugin: Plugin) -> None:
    words = ["--backend", "loop", "-o", f"pool={plugin.home}/pool", "--state-dir", str(plugin.state)]
    done = subprocess.run(
        [sys.executable, "-m", "volkit_docker.main", *words, "--socket", plugin.socket],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "a running process answers there" in done.stderr
    assert plugin.ok("VolumeDriver.List")["Volumes"] == []


def test_what_a_killed_plugin_left_is_known_to_the_doctor(plugin: Plugin) -> None:
    (note,) = (plugin.state / "sockets").iterdir()
    assert note.read_text() == plugin.socket
    plugin.kill()
    assert Path(plugin.socket).exists()
    plugin.start()
    plugin.stop()
    assert list((plugin.state / "sockets").iterdir()) == []


def test_a_mount_that_failed_holds_nothing(plugin: Plugin) -> None:
    """No Unmount follows it; the volume can be removed at once."""
    create(plugin, "v", mountOptions="no-such-option")
    assert plugin.call("VolumeDriver.Mount", {"Name": "v", "ID": "a"})[0] in (400, 500)
    assert plugin.ok("VolumeDriver.Get", {"Name": "v"})["Volume"]["Status"]["holders"] == {}
    plugin.ok("VolumeDriver.Remove", {"Name": "v"})
    assert plugin.mounted() == []


def test_a_volume_is_the_same_by_its_name_and_by_its_id(plugin: Plugin) -> None:
    create(plugin)
    volume_id = plugin.ok("VolumeDriver.Get", {"Name": "v"})["Volume"]["Status"]["id"]
    for first, second in (("v", volume_id), (volume_id, "v")):
        plugin.ok("VolumeDriver.Mount", {"Name": first, "ID": "a"})
        plugin.ok("VolumeDriver.Unmount", {"Name": second, "ID": "a"})
        assert plugin.mounted() == []


def test_options_are_kept_by_the_first_create(plugin: Plugin) -> None:
    create(plugin, "v", readonly="true")
    made = plugin.ok("VolumeDriver.Get", {"Name": "v"})["Volume"]["CreatedAt"]
    create(plugin, "v", readonly="true")
    status, answer = plugin.call("VolumeDriver.Create", {"Name": "v", "Opts": {"size": "16Mi"}})
    assert status == 500
    assert "volume 'v' was made with" in answer["Err"]
    assert plugin.ok("VolumeDriver.Get", {"Name": "v"})["Volume"]["CreatedAt"] == made
    path = plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "a"})["Mountpoint"]
    with pytest.raises(OSError, match="Read-only"):
        Path(path, "file").touch()
    plugin.ok("VolumeDriver.Unmount", {"Name": "v", "ID": "a"})


def test_who_was_seen_and_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    """A daemon that was killed ends its containers when it is back, and mounts again with the same ID: what it said
    before is void. The user is a process with a mount namespace of its own, as a container is.
    """
    plugin = Plugin(tmp_path / "p", f"vs{os.getpid()}", grace=600.0, seen=1.0, settle=0.2).start()
    try:
        create(plugin)
        path = plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "a"})["Mountpoint"]
        place = tmp_path / "inside"
        place.mkdir()
        container = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", f"mount --bind {path} {place} && umount {path} && exec sleep 1000"]
        )
        wait_until("it is there", lambda: f" {place} " in mount_table(container.pid))
        time.sleep(2.0)  # until it was seen, and no start is waited for
        container.kill()
        container.wait()
        plugin.ok("VolumeDriver.Mount", {"Name": "v", "ID": "a"})
        plugin.ok("VolumeDriver.Unmount", {"Name": "v", "ID": "a"})
        wait_until("it is unmounted", lambda: plugin.mounted() == [])
        plugin.ok("VolumeDriver.Remove", {"Name": "v"})
    finally:
        plugin.end()


def mount_table(pid: int) -> str:
    return Path(f"/proc/{pid}/mountinfo").read_text()
