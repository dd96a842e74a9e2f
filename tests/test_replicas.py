"""Two controllers, as on two hosts, that share an etcd and a storage: nothing is doubled, whatever happens to one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from volkit.backend import Backend
from volkit.engine import Engine
from volkit.errors import FailedPrecondition
from volkit.interfaces import Controller
from volkit.journal.etcd import EtcdJournal
from volkit.model import Volume
from volkit.options import NoOptions
from volkit.requests import CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest

Cluster = Any  # of conftest.py, which is no module to import

pytestmark = pytest.mark.needs("etcd", "etcdctl")
PATIENCE = 60.0

REPLICA = '''
"""A controller of a storage that is a directory: a file per volume, named for its name where names are unique."""
import json, os, sys, time
from pathlib import Path
from volkit.backend import Backend
from volkit.engine import Engine
from volkit.errors import AlreadyExists, NotFound, VolkitError
from volkit.interfaces import Controller, FindsByName
from volkit.journal import open_journal
from volkit.model import Capability, FileVolume
from volkit.options import NoOptions
from volkit.requests import Call, CreateVolumeRequest, DeleteVolumeRequest

url, storage, state, unique = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "unique"

class Files(Controller[NoOptions, NoOptions], FindsByName):
    def create_volume(self, request):
        (storage / f"asked.{request.name}").touch()
        time.sleep(0.02)
        while (storage / f"hold.{os.getpid()}").exists():
            time.sleep(0.01)
        id_ = request.name if unique else f"{request.name}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            with open(storage / f"volume.{id_}", "x") as file:
                file.write(str(request.size))
        except FileExistsError:
            raise AlreadyExists(f"{id_} is there") from None
        return FileVolume(id=id_, capacity=request.size)

    def delete_volume(self, request):
        try:
            (storage / f"volume.{request.volume_id}").unlink()
        except FileNotFoundError:
            raise NotFound(request.volume_id) from None

    def get_volume(self, request):
        for path in sorted(storage.glob("volume.*")):
            id_ = path.name.removeprefix("volume.")
            if request.volume_id == id_ or (request.name and request.name == id_.split(".")[0]):
                return FileVolume(id=id_, capacity=int(path.read_text() or 0))
        raise NotFound(request.volume_id or request.name)

class FilesBackend(Backend[NoOptions, NoOptions]):
    name = "files"
    volume = FileVolume
    settings = NoOptions
    parameters = NoOptions
    controller = Files

engine = Engine(FilesBackend, NoOptions(), state_dir=state, journal=open_journal(url), services=["controller"])
print(os.getpid(), flush=True)
for line in sys.stdin:
    what, name = line.split()
    try:
        if what == "create":
            request = CreateVolumeRequest(name=name, parameters={}, capabilities=(Capability(),))
            answer = engine.run("create_volume", request, Call(wait=60)).id
        else:
            answer = engine.run("delete_volume", DeleteVolumeRequest(volume_id=name), Call(wait=60))
        print(json.dumps({"ok": answer}), flush=True)
    except VolkitError as error:
        print(json.dumps({"error": type(error).__name__, "text": error.message}), flush=True)
engine.close()
'''


class Replica:
    def __init__(self, url: str, place: Path, number: int, unique: bool) -> None:
        arguments = [url, str(place), f"{place}/state{number}", "unique" if unique else ""]
        self.process = subprocess.Popen(
            [sys.executable, "-c", REPLICA, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hold = place / f"hold.{int(self._line())}"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ask(self, *what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(what) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._line())
        return found

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Replica]


@pytest.fixture
def start(etcd: Cluster, tmp_path: Path) -> Iterator[Start]:
    prefix = uuid.uuid4().hex
    running: list[Replica] = []

    def start(unique: bool = True, ttl: str = "2") -> Replica:
        running.append(Replica(etcd.url(prefix, ttl=ttl), tmp_path, len(running), unique))
        return running[-1]

    yield start
    for one in running:
        one.close()


def volumes(place: Path) -> list[str]:
    return sorted(path.name.removeprefix("volume.") for path in place.glob("volume.*"))


def test_concurrent_creates_of_one_name_make_one_volume(start: Start, tmp_path: Path) -> None:
    """The storage would make two: it is the lease that keeps them apart."""
    one, other = (start(unique=False, ttl="60") for _ in range(2))  # no lease ends because a machine is slow
    for number in range(15):
        for replica in (one, other):
            replica.ask("create", f"pvc-{number}")
        answers = [replica.answer() for replica in (one, other)]
        assert answers[0] == answers[1]
        assert "ok" in answers[0]
    assert len(volumes(tmp_path)) == 15
    for number, id_ in enumerate(volumes(tmp_path)):
        (one, other)[number % 2].ask("delete", id_)
        assert (one, other)[number % 2].answer() == {"ok": None}
    assert volumes(tmp_path) == []


def stopped_in_the_middle(replica: Replica, place: Path, number: int) -> None:
    """The replica has recorded its intent and asked the storage, which has not made anything yet."""
    replica.hold.touch()
    replica.ask("create", "pvc-1")
    while not (place / "asked.pvc-1").exists():
        time.sleep(0.01)
    replica.process.send_signal(number)


def created_by(replica: Replica) -> None:
    """Repeat as an orchestrator does."""
    started = time.monotonic()
    while True:
        replica.ask("create", "pvc-1")
        answer = replica.answer()
        if answer == {"ok": "pvc-1"}:
            return
        assert answer["error"] in ("Aborted", "Unavailable"), answer
        assert time.monotonic() - started < PATIENCE, answer


def test_a_killed_one_is_taken_over(start: Start, tmp_path: Path) -> None:
    one, other = start(), start()
    stopped_in_the_middle(one, tmp_path, signal.SIGKILL)
    created_by(other)
    assert volumes(tmp_path) == ["pvc-1"]


def test_a_paused_one_is_taken_over_and_changes_nothing_afterwards(start: Start, tmp_path: Path) -> None:
    one, other = start(), start()
    stopped_in_the_middle(one, tmp_path, signal.SIGSTOP)
    created_by(other)
    other.ask("delete", "pvc-1")
    assert other.answer() == {"ok": None}
    created_by(other)
    one.hold.unlink()
    one.process.send_signal(signal.SIGCONT)
    answer = one.answer()  # the storage refuses the second, the journal the record
    assert answer["error"] == "Aborted"
    assert "lost" in answer["text"]
    assert volumes(tmp_path) == ["pvc-1"]
    one.ask("create", "pvc-1")
    assert one.answer() == {"ok": "pvc-1"}


def test_what_a_paused_one_makes_after_it_was_deleted_is_taken_back(start: Start, tmp_path: Path) -> None:
    one, other = start(), start()
    stopped_in_the_middle(one, tmp_path, signal.SIGSTOP)
    created_by(other)
    other.ask("delete", "pvc-1")
    assert other.answer() == {"ok": None}
    one.hold.unlink()
    one.process.send_signal(signal.SIGCONT)
    assert one.answer()["error"] == "Aborted"
    assert volumes(tmp_path) == []
    created_by(other)
    assert volumes(tmp_path) == ["pvc-1"]


def test_what_a_paused_one_makes_stays_where_another_one_waits_for_it(start: Start, tmp_path: Path) -> None:
    """The other one died over the same volume: its intent is there, and the next repeat takes what is found."""
    one, other, third = start(), start(), start()
    stopped_in_the_middle(one, tmp_path, signal.SIGSTOP)
    (tmp_path / "asked.pvc-1").unlink()
    other.hold.touch()
    while not (tmp_path / "asked.pvc-1").exists():  # when the lock of the first has run out
        other.ask("create", "pvc-1")
        until = time.monotonic() + 6
        while time.monotonic() < until and not (tmp_path / "asked.pvc-1").exists():
            time.sleep(0.01)
    other.process.kill()
    time.sleep(3)
    one.hold.unlink()
    one.process.send_signal(signal.SIGCONT)
    assert one.answer()["error"] == "Aborted"
    assert volumes(tmp_path) == ["pvc-1"]
    created_by(third)
    assert volumes(tmp_path) == ["pvc-1"]


def test_a_cut_majority_doubles_nothing(etcd: Cluster, start: Start, tmp_path: Path) -> None:
    one, other = start(), start()
    etcd.pause(0, 1)
    one.ask("create", "pvc-1")
    assert one.answer()["error"] == "Unavailable"
    assert volumes(tmp_path) == []
    etcd.heal()
    created_by(other)
    created_by(one)
    assert volumes(tmp_path) == ["pvc-1"]


class Nameless(Controller[NoOptions, NoOptions]):
    def create_volume(self, request: CreateVolumeRequest[NoOptions]) -> Volume:
        raise AssertionError

    def delete_volume(self, request: DeleteVolumeRequest) -> None:
        raise AssertionError

    def get_volume(self, request: GetVolumeRequest) -> Volume:
        raise AssertionError


class NamelessBackend(Backend[NoOptions, NoOptions]):
    name = "nameless"
    settings = NoOptions
    parameters = NoOptions
    controller = Nameless


def test_a_backend_that_cannot_be_asked_is_refused(etcd: Cluster, tmp_path: Path) -> None:
    journal = EtcdJournal(etcd.url())
    with pytest.raises(FailedPrecondition, match="two replicas"):
        Engine(NamelessBackend, NoOptions(), state_dir=tmp_path, journal=journal, services=["controller"])
    journal.close()
