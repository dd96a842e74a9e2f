"""What only the journal in etcd promises, on a real cluster whose members are killed, paused and cut off."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from volkit.errors import Aborted, FailedPrecondition, InvalidArgument, Unauthenticated, Unavailable
from volkit.journal import Conflict, Put, open_journal
from volkit.journal.etcd import FORMAT, EtcdJournal
from volkit.journal.etcd_client import ATTEMPT_SECONDS, PATIENCE_SECONDS, Address
from volkit.locks import Locks

Cluster = Any  # of conftest.py, which is no module to import
WITHIN = 3 * (PATIENCE_SECONDS + ATTEMPT_SECONDS)  # a busy machine adds to what is promised

pytestmark = pytest.mark.needs("etcd", "etcdctl")


@pytest.fixture
def url(etcd: Cluster) -> str:
    made: str = etcd.url(ttl="2")
    return made


@pytest.fixture
def journal(url: str) -> Iterator[EtcdJournal]:
    with closing(EtcdJournal(url)) as made:
        yield made


def count(journal: EtcdJournal, upto: int) -> None:
    """Count up in one record, by compare-and-swap: a write that happened twice or not at all is a Conflict."""
    for number in range(upto):
        entry = journal.get("n")
        before, revision = (entry.value["n"], entry.revision) if entry else (-1, 0)
        assert before == number - 1
        journal.write(Put("n", {"n": number}, revision=revision), Put(f"all/{number:03}", {}, revision=0))


def test_writes_go_on_after_the_leader_is_killed(etcd: Cluster, journal: EtcdJournal) -> None:
    count(journal, 5)
    etcd.kill(etcd.leader())
    entry = journal.get("n")
    assert entry is not None
    journal.write(Put("n", {"n": 5}, revision=entry.revision))
    assert len(journal.scan("all/")) == 5


@pytest.mark.parametrize("number", range(3))
def test_writes_go_on_while_a_member_hangs(etcd: Cluster, journal: EtcdJournal, number: int) -> None:
    journal.write(Put("before", {}))
    etcd.pause(number)
    started = time.monotonic()
    count(journal, 20)
    assert time.monotonic() - started < 2 * WITHIN
    etcd.resume(number)  # and now it may send on what it was asked
    time.sleep(0.3)
    entry = journal.get("n")
    assert entry is not None
    assert entry.value == {"n": 19}
    assert len(journal.scan("all/")) == 20


@pytest.mark.parametrize("cut", ["killed", "paused"])
def test_without_a_majority_it_says_so_in_time_and_loses_nothing(
    etcd: Cluster, journal: EtcdJournal, cut: str
) -> None:
    count(journal, 3)
    for number in (0, 1):
        etcd.kill(number) if cut == "killed" else etcd.pause(number)
    uses: list[Callable[[], object]] = [lambda: journal.write(Put("lost", {})), lambda: journal.get("n")]
    for use in uses:
        started = time.monotonic()
        with pytest.raises(Unavailable, match="majority"):
            use()
        assert time.monotonic() - started < WITHIN
    etcd.heal()
    journal.write(Put("lost", {"again": True}))
    time.sleep(1)  # a copy of the first write that comes late does nothing
    found = journal.get("lost")
    assert found is not None
    assert found.value == {"again": True}
    assert len(journal.scan("all/")) == 3


@pytest.fixture
def bodies(journal: EtcdJournal, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The transactions whose answers got lost: each first one is done, and not answered."""
    from etcd3gw.exceptions import ConnectionTimeoutError

    real = journal._client._post
    lost: list[dict[str, Any]] = []

    def post(at: int, path: str, body: dict[str, Any]) -> Any:
        answer = real(at, path, body)
        if path == "kv/txn" and body not in lost and len(body["success"]) > 1:
            lost.append(body)
            raise ConnectionTimeoutError("timed out")
        return answer

    journal._check()
    monkeypatch.setattr(journal._client, "_post", post)
    return lost


def test_a_write_whose_answer_is_lost_happens_once(
    journal: EtcdJournal, bodies: list[dict[str, Any]]
) -> None:
    count(journal, 10)
    assert len(bodies) == 10


def test_a_refused_write_whose_answer_is_lost_is_not_called_done(
    journal: EtcdJournal, bodies: list[dict[str, Any]]
) -> None:
    journal.write(Put("a", {"by": "first"}))
    for _ in range(3):
        with pytest.raises((Conflict, Unavailable)):
            journal.write(Put("a", {"by": "second"}, revision=1))
    entry = journal.get("a")
    assert entry is not None
    assert entry.value == {"by": "first"}
    assert len(bodies) == 4


def test_a_copy_that_comes_late_does_nothing(journal: EtcdJournal, bodies: list[dict[str, Any]]) -> None:
    journal.write(Put("a", {"n": 1}))
    journal.write(Put("a", {"n": 2}))
    for body in bodies:
        assert "succeeded" not in journal._call("kv/txn", body)
    entry = journal.get("a")
    assert entry is not None
    assert entry.value == {"n": 2}


def test_a_long_listing_is_of_one_moment(journal: EtcdJournal) -> None:
    for start in range(0, 1200, 100):
        journal.write(*(Put(f"v/{n:04}", {}) for n in range(start, start + 100)))
    assert [entry.key for entry in journal.scan("v/")] == [f"v/{n:04}" for n in range(1200)]
    assert len(journal.scan("v/", limit=700)) == 700


def test_a_compaction_in_the_middle_of_a_listing_is_to_be_repeated(
    etcd: Cluster, journal: EtcdJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in range(0, 600, 100):
        journal.write(*(Put(f"v/{n:04}", {}) for n in range(start, start + 100)))
    call = journal._client.call

    def compacting(path: str, body: dict[str, Any], **words: Any) -> tuple[Any, bool]:
        answer = call(path, body, **words)
        if answer[0].get("more"):
            journal.write(Put("other", {}))
            revision = int(answer[0]["header"]["revision"]) + 1
            assert etcd.etcdctl("compaction", str(revision)).returncode == 0
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(journal._client, "call", compacting)
        with pytest.raises(Unavailable, match="repeat the call"):
            journal.scan("v/")
    assert len(journal.scan("v/")) == 600


@pytest.mark.parametrize("damaged", [b"{", b'{"name": "\xf8"}'], ids=["not JSON", "not UTF-8"])
def test_a_damaged_record_is_quarantined_and_the_others_are_there(
    etcd: Cluster, journal: EtcdJournal, damaged: bytes
) -> None:
    journal.write(Put("a", {}), Put("b", {}), Put("c", {}))
    place = f"{journal.address.prefix}/record/b"
    assert etcd.etcdctl("put", place, os.fsdecode(damaged)).returncode == 0
    assert [entry.key for entry in journal.scan("", limit=0)] == ["a", "c"]
    assert journal.get("b") is None
    assert journal.get("quarantine/b") is not None


def test_a_lease_is_one_holders_and_fences_its_writes(etcd: Cluster) -> None:
    url = etcd.url(ttl="4")
    with closing(EtcdJournal(url)) as journal, closing(EtcdJournal(url)) as other:
        first = journal.lease("volume/v", wait=0)
        assert first is not None
        journal.write(Put("a", {"by": "first"}))
        assert other.lease("volume/v", wait=0.1) is None
        time.sleep(5)  # longer than it lasts: it is renewed
        assert not first.lost
        assert other.lease("volume/v", wait=0) is None
        first.release()
        second = other.lease("volume/v", wait=0)
        assert second is not None
        assert second.revision > first.revision
        second.release()


def test_who_lost_a_lease_writes_nothing(
    url: str, journal: EtcdJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A paused process: its thread renews nothing, and its clock is not looked at before the write is sent."""
    with closing(EtcdJournal(url)) as other:
        uses: list[Callable[[], object]] = [lambda: journal.write(Put("a", {})), journal.fence]
        first = journal.lease("volume/v", wait=0)
        assert first is not None
        journal._sessions._closed.set()
        second = other.lease("volume/v", wait=60)
        assert second is not None
        assert first.lost
        for refuse in uses:
            with pytest.raises(Aborted, match=r"volume 'v'.*lost"):
                refuse()
        monkeypatch.setattr(type(first), "lost", False)
        for refuse in uses:
            with pytest.raises(Aborted, match=r"volume 'v'.*lost"):
                refuse()
        assert other.get("a") is None
        other.write(Put("a", {"by": "second"}))
        first.release()  # takes nothing away from the second
        other.fence()
        second.release()
        journal.write(Put("b", {}))  # without a lease: nothing to lose


def test_a_lock_whose_release_fails_is_released_later(
    etcd: Cluster, url: str, journal: EtcdJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = journal.lease("volume/v", wait=0)
    assert lease is not None

    def away(*_: object, **__: object) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(journal._client, "call", away)
        lease.release()
    with closing(EtcdJournal(url)) as other:
        again = other.lease("volume/v", wait=60)
        assert again is not None
        again.release()


def test_locks_of_two_hosts_exclude_each_other(url: str, journal: EtcdJournal, tmp_path: Path) -> None:
    with closing(EtcdJournal(url)) as other:
        one, two = Locks(tmp_path / "one", journal), Locks(tmp_path / "two", other)
        with one.hold("volume-name/n", "volume/v", wait=0):
            with pytest.raises(Aborted, match="under way"), two.hold("volume/v", wait=0.1):
                pass
            with two.hold("volume/w", wait=0):
                pass
        with two.hold("volume/v", wait=0):
            pass


def test_a_cluster_that_is_away_at_start_may_come_later(etcd: Cluster, url: str, caplog: Any) -> None:
    etcd.pause()
    with caplog.at_level(logging.WARNING):
        journal = EtcdJournal(url)
    with closing(journal):
        assert "away at start" in caplog.text
        etcd.heal()
        journal.write(Put("a", {}))
        assert journal.get("a") is not None


def test_a_newer_format_is_refused_and_one_ahead_is_not(etcd: Cluster, url: str) -> None:
    prefix = Address.parse(url).prefix
    for version, fits in ((FORMAT, True), (FORMAT + 1, True), (FORMAT + 2, False)):
        assert etcd.etcdctl("put", f"{prefix}/format", str(version)).returncode == 0
        if fits:
            EtcdJournal(url).close()
        else:
            with pytest.raises(FailedPrecondition, match="upgrade"):
                EtcdJournal(url)


# -- addresses, TLS and authentication


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("h:1", "prefix"),
        ("user:hunter2@h:1/p", "password-file"),
        ("h/p", "HOST:PORT"),
        ("h:0/p", "HOST:PORT"),
        ("h:1,:2/p", "HOST:PORT"),
        ("h:1/p?password=hunter2", "'password'"),
        ("h:1/p?user=u", "password-file"),
        ("h:1/p?ca=/c&cert=/d", "key="),
        ("h:1/p?cert=/c&key=/k", "ca="),
        ("h:1/p?ttl=1", "ttl"),
    ],
)
def test_a_wrong_address_is_refused_and_never_shown(rest: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        open_journal(f"etcd://{rest}")
    assert "hunter2" not in str(caught.value)


def test_an_address_names_several_endpoints() -> None:
    address = Address.parse("etcd://a:1,[::1]:2/some/prefix/?user=u&password-file=/secret/file&ca=/ca")
    assert address.endpoints == (("a", 1), ("::1", 2))
    assert address.prefix == "some/prefix"
    assert "secret" not in f"{address} {address!r}"


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def certificates(directory: Path) -> None:
    """An authority, a server's certificate for 127.0.0.1, and a client's."""
    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    signs = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 wants it said
    for name in ("ca", "other-ca"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl(directory, *new, "-subj", "/CN=authority", *signs, *files)
    for name in ("server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        subject = "/CN=server" if name == "server" else "/O=client"  # etcd takes no CommonName beside a user
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        openssl(
            directory,
            *new,
            "-subj",
            subject,
            "-addext",
            "basicConstraints=critical,CA:false",
            *signed,
            *files,
        )


@pytest.mark.needs("openssl")
def test_tls_and_authentication(
    etcd: Cluster, tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    certificates(tmp_path)
    (tmp_path / "data").mkdir()
    secured = type(etcd)(tmp_path / "data", free_ports(6), tls=tmp_path)
    password = tmp_path / "password"
    password.write_text("hunter2\n")
    try:
        secured.start()
        secured.wait()
        tls = {"ca": f"{tmp_path}/ca.pem", "cert": f"{tmp_path}/client.pem", "key": f"{tmp_path}/client.key"}
        with closing(EtcdJournal(secured.url(**tls))) as journal:
            journal.write(Put("a", {}))
        with closing(EtcdJournal(secured.url(ca=tls["ca"]))) as journal, pytest.raises(Unavailable):
            journal.get("a")
        with closing(EtcdJournal(secured.url(**{**tls, "ca": f"{tmp_path}/other-ca.pem"}))) as journal:
            with pytest.raises(Unavailable, match=r"certificate is not accepted \(.+\): see ca="):
                journal.get("a")
        for command in ("user add root:hunter2", "user grant-role root root", "auth enable"):
            done = secured.etcdctl(*command.split())
            assert done.returncode == 0, done.stderr
        user = {**tls, "user": "root", "password_file": str(password)}
        with closing(EtcdJournal(secured.url(**user))) as journal:
            journal.write(Put("a", {}))
            journal._client._session.headers["Authorization"] = "run.out"
            assert journal.get("a") is not None
            lease = journal.lease("volume/v", wait=0)
            assert lease is not None
            lease.release()
            assert "hunter2" not in f"{journal!r} {vars(journal)} {vars(journal._client)}"
        password.write_text("hunter3")
        with pytest.raises(Unauthenticated, match="user 'root'") as caught:
            EtcdJournal(secured.url(**user))
        assert "hunter3" not in str(caught.value)
        with pytest.raises((Unauthenticated, FailedPrecondition)):
            EtcdJournal(secured.url(**tls))
    finally:
        secured.close()
