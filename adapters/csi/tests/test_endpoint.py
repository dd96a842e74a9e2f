"""Where a driver listens: the forms of an endpoint, and what may happen to the socket there."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from volkit import FailedPrecondition, InvalidArgument
from volkit.sockets import MAX_PATH, Listener, identity, make_parent
from volkit_csi.endpoint import Endpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "csi.sock"


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield server


@contextmanager
def served(endpoint: Endpoint) -> Iterator[Listener]:
    """A listener whose socket a plain server has bound, as gRPC does, and published."""
    listener = Listener(endpoint)
    with socket.socket(socket.AF_UNIX) as server:
        with listener.private():
            server.bind(listener.address)
        server.listen()
        listener.publish()
        yield listener
    listener.remove()


def permissions(path: Path | str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.mark.parametrize("text", ["unix:///run/x/csi.sock", "unix:/run/x/csi.sock", "/run/x/csi.sock"])
def test_the_three_forms_of_one_endpoint(text: str) -> None:
    endpoint = Endpoint.parse(text)
    assert endpoint == Endpoint("/run/x/csi.sock")
    assert str(endpoint) == "unix:///run/x/csi.sock"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("unix:", "not an absolute path"),
        ("unix://", "would be a host"),
        ("unix://tmp/q.sock", "'tmp' would be a host; three slashes"),
        ("unix:tmp/q.sock", "not an absolute path"),
        ("run/csi.sock", "not an absolute path"),
        ("csi.sock", "not an absolute path"),
        ("tcp://127.0.0.1:10000", "'tcp' is not served"),
        ("tcp:///run/csi.sock", "'tcp' is not served"),
        ("127.0.0.1:10000", "only unix sockets are"),
        ("unix-abstract:csi", "'unix-abstract' is not served"),
        ("unix:@csi", "not an absolute path"),
        ("http://x/y.sock", "'http' is not served"),
        ("unix:///run/volkit/", "names a directory"),
        ("unix:///", "names a directory"),
        ("/run/volkit/..", "names a directory"),
        ("/run/a\0b.sock", "NUL"),
        ("unix:///" + "a" * MAX_PATH, f"has {MAX_PATH + 1} bytes"),
        ("/" + "ü" * 54, "has 109 bytes"),
    ],
)
def test_other_endpoints_are_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says.replace("(", r"\(")):
        Endpoint.parse(text)


def test_owner_group_and_mode_are_read() -> None:
    endpoint = Endpoint.parse("/run/csi.sock", mode=0o600, owner="root", group="12")
    assert endpoint == Endpoint("/run/csi.sock", 0o600, 0, 12)


@pytest.mark.parametrize(
    "wrong", [{"owner": "no-such-user"}, {"group": "no-such-group"}, {"mode": 0o1777}, {"mode": 0}]
)
def test_wrong_owner_group_or_mode_is_refused(wrong: dict[str, str | int]) -> None:
    with pytest.raises(InvalidArgument, match=r"no-such|socket mode"):
        Endpoint.parse("/run/csi.sock", **wrong)  # type: ignore[arg-type]


def test_socket_appears_complete_under_any_umask_and_goes(path: Path) -> None:
    before = os.umask(0)
    try:
        with served(Endpoint(str(path), mode=0o640)) as listener:
            assert permissions(path) == 0o640
            assert [entry.name for entry in path.parent.iterdir()] == ["csi.sock"]
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        assert not path.exists()
        listener.remove()
        assert os.umask(0) == 0, "the process's umask was not put back"
    finally:
        os.umask(before)


def test_socket_is_private_until_it_is_published(path: Path) -> None:
    listener = Listener(Endpoint(str(path), mode=0o666))
    with socket.socket(socket.AF_UNIX) as server:
        with listener.private():
            server.bind(listener.address)
        hidden = list(path.parent.iterdir())
        assert [permissions(entry) for entry in hidden] == [0o600]
        listener.publish()
        assert permissions(path) == 0o666
    listener.remove()
    assert list(path.parent.iterdir()) == []


@pytest.mark.root
def test_owner_and_group_are_set_on_the_socket_and_on_a_new_directory(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "csi.sock"
    with served(Endpoint(str(path), owner=12, group=34)):
        for created in (path, path.parent):
            assert (os.lstat(created).st_uid, os.lstat(created).st_gid) == (12, 34)
        assert permissions(path.parent) == 0o750
        assert os.lstat(path.parent.parent).st_uid == os.geteuid()


def test_a_new_directory_admits_whom_the_socket_admits(tmp_path: Path) -> None:
    make_parent(Endpoint(str(tmp_path / "open" / "csi.sock"), mode=0o666))
    make_parent(Endpoint(str(tmp_path / "shut" / "csi.sock"), mode=0o660))
    assert permissions(tmp_path / "open") == 0o755
    assert permissions(tmp_path / "shut") == 0o750
    os.chmod(tmp_path / "open", 0o700)
    make_parent(Endpoint(str(tmp_path / "open" / "csi.sock"), mode=0o666))
    assert permissions(tmp_path / "open") == 0o700, "an existing directory is left as it is"


def test_stale_socket_is_replaced(path: Path) -> None:
    with listening(path):
        stale = identity(str(path))
    assert path.is_socket()
    with served(Endpoint(str(path))):
        assert identity(str(path)) != stale
    assert not path.exists()


def test_socket_that_answers_is_refused_and_left_alone(path: Path) -> None:
    with listening(path) as server:
        before = identity(str(path))
        with pytest.raises(FailedPrecondition, match="a running process answers there"):
            Listener(Endpoint(str(path)))
        assert identity(str(path)) == before
        server.accept()[0].close()


def test_socket_of_another_type_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        with pytest.raises(FailedPrecondition, match="answers"):
            Listener(Endpoint(str(path)))


def test_what_is_no_socket_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(FailedPrecondition, match="a regular file is there"):
        Listener(Endpoint(str(path)))
    assert path.read_text() == "precious"
    path.unlink()
    path.mkdir()
    with pytest.raises(FailedPrecondition, match="a directory is there"):
        Listener(Endpoint(str(path)))
    path.rmdir()
    path.symlink_to("elsewhere.sock")
    with pytest.raises(FailedPrecondition, match="a symbolic link is there"):
        Listener(Endpoint(str(path)))


def test_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match=r"cannot prepare endpoint unix://.*Not a directory"):
        Listener(Endpoint(str(tmp_path / "file" / "csi.sock")))


def test_socket_of_a_successor_is_not_removed(path: Path) -> None:
    with served(Endpoint(str(path))):
        path.unlink()
        with listening(path):
            successor = identity(str(path))
        # The block ends here: the first server stops while the successor's socket is in place.
    assert identity(str(path)) == successor


def test_failed_publish_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(Endpoint(str(path)))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(listener.address)
        path.mkdir()  # rename onto a directory fails
        with pytest.raises(FailedPrecondition, match="cannot set up endpoint"):
            listener.publish()
    assert list(path.parent.iterdir()) == [path]


def test_longest_path_can_be_bound(tmp_path: Path) -> None:
    room = MAX_PATH - len(os.fsencode(str(tmp_path))) - 1
    directory = tmp_path / ("d" * (room - len("/csi.sock")))
    path = directory / "csi.sock"
    assert len(os.fsencode(str(path))) == MAX_PATH
    with served(Endpoint.parse(str(path))), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
