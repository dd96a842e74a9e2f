"""The store by itself: what it leaves on disk, whatever happens to process, disk and neighbours."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volkit import AlreadyExists, FailedPrecondition, NotFound, OutOfRange, ResourceExhausted, Unavailable
from volkit.host import files
from volkit_loop.pool import SNAPSHOTS, VOLUMES, Pool

MIB = 1 << 20
pytestmark = pytest.mark.root


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_an_image_is_sparse_private_and_found_by_every_process(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    made = pool.create(VOLUMES, "v1234567", 64 * MIB)
    assert (made.size, made.allocated < MIB, made.claim() > 63 * MIB) == (64 * MIB, True, True)
    assert stat.S_IMODE(os.stat(made.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "volumes").st_mode) == 0o700
    assert Pool(tmp_path).get(VOLUMES, "v1234567") == made
    assert not [path for path in (tmp_path / "making").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "id_",
    [
        "", ".", "..", "../x", "a/b", "/etc/passwd", "v1\n", "V1234", "v1\0", "v1.img", "1abc", "v" * 64,
        "v-", "é1é", "../../../../etc/passwd", "volumes/../v1",
    ],
)  # fmt: skip
def test_an_id_of_another_form_is_never_a_path(tmp_path: Path, id_: str) -> None:
    pool = Pool(tmp_path)
    with pytest.raises(NotFound):
        pool.get(VOLUMES, id_)
    with pytest.raises(NotFound):
        pool.create(VOLUMES, id_, MIB)
    assert os.listdir(tmp_path / "volumes") == []


def test_a_second_image_of_one_id_is_refused_and_leaves_the_first(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    made = pool.create(VOLUMES, "v1234567", MIB)
    before = pool.available()
    with pytest.raises(AlreadyExists):
        pool.create(VOLUMES, "v1234567", 2 * MIB)
    assert pool.get(VOLUMES, "v1234567") == made
    assert abs(pool.available() - before) < MIB


def test_an_image_that_a_person_put_there_is_a_volume(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    place = tmp_path / "volumes" / "ed"
    place.mkdir()
    (place / "v-imported.img").write_bytes(bytes(4096))
    (place / "notes.txt").write_text("not an image")
    (tmp_path / "volumes" / "README").write_text("not a directory")
    assert [image.id for image in pool.after(VOLUMES)] == ["v-imported"]
    assert pool.get(VOLUMES, "v-imported").record.parent == ""
    assert pool.available() > 0


def test_a_damaged_record_does_not_hide_the_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(tmp_path)
    made = pool.create(VOLUMES, "v1234567", MIB)
    os.setxattr(made.path, "user.volkit", b"{")
    assert pool.get(VOLUMES, "v1234567").size == MIB
    assert "unreadable record" in caplog.text


def test_a_pool_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="mount its file system"):
        Pool(tmp_path / "missing")


def test_a_pool_that_went_away_proves_nothing_about_its_volumes(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    pool = Pool(tmp_path / "pool")
    pool.create(VOLUMES, "v1234567", MIB)
    os.rename(tmp_path / "pool", tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="is its file system mounted"):
        pool.get(VOLUMES, "v1234567")


KILLED = """
import os, signal, sys
from pathlib import Path
from volkit_loop import pool
target, place, source = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "copy"
here = pool.Pool(place)
made = here.create(pool.VOLUMES, "v-source", 1 << 20)
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
owner, name = target.split(".")
setattr(getattr(pool, owner), name, die) if owner != "pool" else setattr(pool, name, die)
here.create(pool.VOLUMES, "v-victim", 8 << 20, source=made if source else None)
"""


@pytest.mark.parametrize("content", ["blank", "copy"])
@pytest.mark.parametrize(
    ("moment", "there"),
    [("os.truncate", False), ("os.link", False), ("os.unlink", True), ("pool._sync", True)],
)
def test_a_killed_create_leaves_all_or_nothing(
    tmp_path: Path, moment: str, there: bool, content: str
) -> None:
    result = run(KILLED, moment, tmp_path, content)
    assert result.returncode == -signal.SIGKILL, result.stderr
    pool = Pool(tmp_path)
    assert list((tmp_path / "making").rglob("*")) == []
    if there:
        assert pool.get(VOLUMES, "v-victim").size == 8 * MIB
    else:
        with pytest.raises(NotFound):
            pool.get(VOLUMES, "v-victim")
        pool.create(VOLUMES, "v-victim", 8 * MIB)
    (tmp_path / "ledger").unlink()
    claims = sum(image.claim() for image in pool.after(VOLUMES))
    assert (
        abs(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize - pool.available() - claims)
        < 64 * MIB
    )


def test_a_killed_remove_leaves_nothing_either(tmp_path: Path) -> None:
    code = KILLED.replace('here.create(pool.VOLUMES, "v-victim"', "here.remove(made); (lambda *a, **k: 0)(0")
    assert run(code, "os.unlink", tmp_path, "blank").returncode == -signal.SIGKILL
    assert [path for path in (tmp_path / "making").rglob("*") if path.is_file()]
    pool = Pool(tmp_path)
    assert list((tmp_path / "making").rglob("*")) == []
    with pytest.raises(NotFound):
        pool.get(VOLUMES, "v-source")


def test_a_process_that_lives_keeps_what_it_is_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(tmp_path)
    seen = []
    real = os.link

    def link(*args: Any, **kwargs: Any) -> None:
        seen.extend(run("import sys; from pathlib import Path; from volkit_loop.pool import Pool; "
                        "Pool.__init__.__globals__['Ledger'].locked = __import__('contextlib').nullcontext; "
                        "Pool(Path(sys.argv[1]))", tmp_path).stderr.splitlines())  # fmt: skip
        real(*args, **kwargs)

    monkeypatch.setattr(os, "link", link)
    assert pool.create(VOLUMES, "v1234567", MIB).size == MIB
    assert seen == []


def test_a_full_pool_is_an_answer_and_leaves_nothing_half_made(filesystem: Any) -> None:
    place = filesystem("tmpfs", 64 * MIB)
    pool = Pool(place, overcommit=100)
    source = pool.create(VOLUMES, "v-source", 8 * MIB)
    Path(source.path).write_bytes(os.urandom(8 * MIB))
    source = pool.get(VOLUMES, "v-source")
    before = pool.available()
    free = os.statvfs(place).f_bavail
    for attempt in range(3):
        with pytest.raises(ResourceExhausted):
            pool.create(VOLUMES, f"v-thick-{attempt}", 80 * MIB, preallocate=True)
    filler = place / "filler"
    filler.write_bytes(bytes(50 * MIB))
    for attempt in range(3):
        with pytest.raises(ResourceExhausted):
            pool.create(VOLUMES, f"v-clone-{attempt}", 8 * MIB, source=source)
    with pytest.raises(ResourceExhausted):
        pool.grow(pool.create(VOLUMES, "v-grows", MIB, preallocate=True), 20 * MIB)
    assert pool.get(VOLUMES, "v-grows").size == MIB
    pool.remove(pool.get(VOLUMES, "v-grows"))
    filler.unlink()
    assert [path for path in (place / "making").rglob("*") if path.is_file()] == []
    assert [image.id for image in pool.after(VOLUMES)] == ["v-source"]
    assert os.statvfs(place).f_bavail >= free - 16  # pages of directories
    assert abs(pool.available() - before) < 20 * MIB


def test_a_disk_without_a_single_free_block_can_still_be_emptied(filesystem: Any) -> None:
    place = filesystem("ext4", 32 * MIB)
    pool = Pool(place, overcommit=100)
    thick = pool.create(VOLUMES, "v-thick", 8 * MIB, preallocate=True)
    assert (
        run(
            "while True: open(__import__('sys').argv[1], 'ab').write(bytes(65536))", place / "filler"
        ).returncode
        == 1
    )
    with pytest.raises(ResourceExhausted):
        pool.create(VOLUMES, "v-more", 4 * MIB, preallocate=True)
    Pool(place).remove(thick)
    assert pool.create(VOLUMES, "v-more", 4 * MIB, preallocate=True).allocated >= 4 * MIB


def test_a_size_beyond_the_file_system_is_out_of_range(tmp_path: Path) -> None:
    pool = Pool(tmp_path, overcommit=1e12)
    with pytest.raises(OutOfRange):
        pool.create(VOLUMES, "v1234567", 2**60)
    made = pool.create(VOLUMES, "v1234567", MIB)
    with pytest.raises(OutOfRange):
        pool.grow(made, 2**60)
    assert pool.get(VOLUMES, "v1234567").size == MIB


def free_and_claimed(place: Path) -> tuple[int, int]:
    """Measured without the code under test: free bytes, and the holes of all volumes."""
    found = os.statvfs(place)
    images = [os.stat(path) for path in (place / "volumes").rglob("*.img")]
    return found.f_bavail * found.f_frsize, sum(max(one.st_size - one.st_blocks * 512, 0) for one in images)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["create", "thick", "clone", "snapshot", "grow", "write", "discard", "remove", "foreign"]
        ),
        st.integers(0, 5),
        st.integers(1, 24),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from volkit.host import mounts

    place = tmp_path_factory.mktemp("scratch")
    mounts.mount("tmpfs", str(place), "tmpfs", [f"size={64 * MIB}"])
    yield place
    mounts.unmount(str(place))


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_the_ledger_never_promises_more_than_there_is_and_refuses_nothing_that_fits(
    scratch: Path, steps: list[tuple[str, int, int]]
) -> None:
    place = scratch / os.urandom(4).hex()
    place.mkdir()
    pool = Pool(place)
    try:
        for step, number, size in steps:
            apply(pool, place, step, f"v-{number}", f"s-{number}", size * MIB)
            free, claimed = free_and_claimed(place)
            with pool._ledger.opened() as balance:
                assert pool._ledger.available(balance) <= max(free - claimed, 0)
                assert pool._ledger.available(balance, max_age=0) == max(free - claimed, 0)
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=True)


def apply(pool: Pool, place: Path, step: str, volume: str, snapshot: str, size: int) -> None:
    free, claimed = free_and_claimed(place)
    left = free - claimed
    needed = 0
    try:
        if step in ("create", "thick"):
            needed = size
            pool.create(VOLUMES, volume, size, preallocate=step == "thick")
        elif step == "clone":
            source = pool.get(SNAPSHOTS, snapshot)
            needed = max(source.size, size)
            pool.create(VOLUMES, volume, needed, source=source)
        elif step == "snapshot":
            source = pool.get(VOLUMES, volume)
            needed = source.allocated
            pool.create(SNAPSHOTS, snapshot, source.size, source=source)
        elif step == "grow":
            image = pool.get(VOLUMES, volume)
            needed = size
            pool.grow(image, image.size + size)
        elif step == "remove":
            pool.remove(pool.get(VOLUMES, volume))
        elif step == "foreign":
            (place / "foreign").write_bytes(bytes(min(size, left)))
        else:
            image = pool.get(VOLUMES, volume)
            with open(image.path, "r+b") as file:
                if step == "write":
                    file.write(b"x" * min(size, image.size))
                else:
                    subprocess.run(["fallocate", "-p", "-o", "0", "-l", str(size), image.path], check=True)
    except ResourceExhausted:
        assert needed > left
    except (NotFound, AlreadyExists):
        pass
    else:
        assert needed <= left


def test_a_new_boot_and_a_broken_ledger_are_counted_anew(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.create(VOLUMES, "v1234567", 64 * MIB)
    free, claimed = free_and_claimed(tmp_path)
    for text in (b"", b"[1, 2", b'["another-boot", 1, 1, 1]', b"{}", b"\xff\xfe", b'["x"]'):
        (tmp_path / "ledger").write_bytes(text)
        assert abs(pool.available() - (free - claimed)) < 64 * MIB


FILL = """
import sys
from pathlib import Path
from volkit import ResourceExhausted
from volkit_loop.pool import Pool, VOLUMES
pool, made = Pool(Path(sys.argv[1])), 0
print("ready", flush=True)
sys.stdin.readline()
try:
    while True:
        pool.create(VOLUMES, f"v-{sys.argv[2]}-{made}", 1 << 18, preallocate=made % 2 == 1)
        made += 1
except ResourceExhausted:
    print(made)
"""


def test_two_processes_share_the_room_of_one_pool(filesystem: Any) -> None:
    place = filesystem("tmpfs", 32 * MIB)
    Pool(place)
    fillers = [
        subprocess.Popen(
            [sys.executable, "-c", FILL, str(place), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for filler in fillers:
        assert filler.stdout
        assert filler.stdout.readline() == "ready\n"
    for filler in fillers:
        assert filler.stdin
        filler.stdin.write("go\n")
        filler.stdin.flush()
    made = [int(filler.communicate(timeout=60)[0]) for filler in fillers]
    assert min(made) > 0
    assert sum(made) == len(list((place / "volumes").rglob("*.img"))) >= 120
    free, claimed = free_and_claimed(place)
    assert 0 <= free - claimed < MIB  # what another process was just making was counted in full


def test_many_threads_share_it_too(filesystem: Any) -> None:
    place = filesystem("tmpfs", 64 * MIB)
    pool = Pool(place)
    faults: list[BaseException] = []

    def live(name: str) -> None:
        try:
            for turn in range(8):
                made = pool.create(VOLUMES, f"v-{name}-{turn}", MIB, preallocate=bool(turn % 2))
                pool.grow(made, 2 * MIB)
                copy = pool.create(SNAPSHOTS, f"s-{name}-{turn}", 2 * MIB, source=pool.get(VOLUMES, made.id))
                pool.remove(copy)
                pool.remove(pool.get(VOLUMES, made.id))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=live, args=[str(number)]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert list((place / "volumes").rglob("*.img")) == []
    free, _ = free_and_claimed(place)
    assert pool.available() == free


def test_pages_hold_each_image_that_stays_exactly_once(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    stay = {f"v-stay-{number:04d}" for number in range(300)}
    for id_ in sorted(stay, key=hash):
        pool.create(VOLUMES, id_, MIB)
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            made = pool.create(VOLUMES, f"v-gone-{random.randrange(10**6):06d}", MIB)
            pool.remove(made)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            seen: list[str] = []
            last = ""
            while page := [image.id for image, _ in zip(pool.after(VOLUMES, last), range(37), strict=False)]:
                seen += page
                last = page[-1]
            assert len(seen) == len(set(seen))
            assert stay <= set(seen)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "fs_type",
    [
        pytest.param("xfs", marks=pytest.mark.needs("mkfs.xfs")),
        pytest.param("btrfs", marks=pytest.mark.needs("mkfs.btrfs")),
    ],
)
def test_a_reflink_takes_no_space_and_claims_what_it_may_still_take(filesystem: Any, fs_type: str) -> None:
    place = filesystem(fs_type)
    pool = Pool(place)
    volume = pool.create(VOLUMES, "v-source", 64 * MIB)
    write(volume.path, 0, 32)
    room = recounted(pool, place)
    with open(volume.path, "rb") as file:
        content = file.read()

    snapshot = pool.create(SNAPSHOTS, "s-cut", 64 * MIB, source=pool.get(VOLUMES, "v-source"))
    assert snapshot.record.shared
    assert about(pool.available(), room - 32 * MIB)  # to overwrite the volume now takes as much again
    assert about(recounted(pool, place), room - 32 * MIB)

    write(volume.path, 0, 32)
    assert about(recounted(pool, place), room - 32 * MIB)  # it has taken it
    with open(snapshot.path, "rb") as file:
        assert file.read() == content

    clone = pool.create(VOLUMES, "v-clone", 96 * MIB, source=snapshot)
    assert clone.size == 96 * MIB
    assert about(pool.available(), room - (32 + 96) * MIB)
    assert about(recounted(pool, place), room - (32 + 96) * MIB)
    pool.remove(clone)
    pool.remove(snapshot)
    end = time.monotonic() + 60  # xfs gives the blocks back a little later
    while not about(recounted(pool, place), room):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_copy_keeps_the_holes_and_says_so(
    tmp_path: Path, filesystem: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(filesystem("ext4"))
    caplog.set_level("INFO")
    volume = pool.create(VOLUMES, "v-source", 64 * MIB)
    write(volume.path, 10, 2)
    copy = pool.create(SNAPSHOTS, "s-cut", 64 * MIB, source=pool.get(VOLUMES, "v-source"))
    assert not copy.record.shared
    assert 2 * MIB <= copy.allocated < 3 * MIB
    assert Path(copy.path).read_bytes() == Path(volume.path).read_bytes()
    assert "has no reflinks" in caplog.text


def test_a_copy_that_was_written_meanwhile_is_thrown_away(
    filesystem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(filesystem("ext4"))
    volume = pool.create(VOLUMES, "v-source", 8 * MIB)
    real = files.clone

    def clone(source: str, made: str) -> Any:
        way = real(source, made)
        time.sleep(0.02)
        write(source, 0, 1)
        return way

    monkeypatch.setattr(files, "clone", clone)
    with pytest.raises(FailedPrecondition, match="written to while it was copied"):
        pool.create(SNAPSHOTS, "s-cut", 8 * MIB, source=volume)
    assert list(pool.after(SNAPSHOTS)) == []


def write(path: str, start: int, length: int) -> None:
    with open(path, "r+b") as file:
        file.seek(start * MIB)
        file.write(os.urandom(length * MIB))
        file.flush()
        os.fsync(file.fileno())


def recounted(pool: Pool, place: Path) -> int:
    subprocess.run(["sync", "-f", str(place)], check=True)
    (place / "ledger").write_bytes(b"")
    return pool.available()


def about(found: int, expected: int) -> bool:
    return abs(found - expected) < 6 * MIB
