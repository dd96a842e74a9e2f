"""A journal that is cut off in the middle of a page, and a state directory on a disk that is really full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from volkit.journal import Put, open_journal
from volkit_csi.client import CallError

from .conftest import Drivers
from .orchestrator import MIB, Orchestrator, capability


def test_a_write_ahead_log_that_ends_anywhere_loses_no_synced_record(tmp_path: Path) -> None:
    """After a power cut its last pages may be missing, or be half written: what was durable before them stays."""
    whole = tmp_path / "whole"
    whole.mkdir()
    journal = open_journal(f"sqlite://{whole}/journal.db")
    sizes = []
    for number in range(30):
        journal.write(Put(f"volume-name/{number:03}", {"id": str(number), "pad": "x" * 700}), durable=True)
        sizes.append((whole / "journal.db-wal").stat().st_size)
    cuts = sorted({size + off for size in sizes[::4] for off in (-4000, -1, 0, 1, 24, 3000)} | {0, 31, 33})
    for cut in cuts:
        copy = tmp_path / f"cut-{cut}"
        shutil.copytree(whole, copy)
        for shared in copy.glob("*-shm"):  # is made anew after a power cut
            shared.unlink()
        with (copy / "journal.db-wal").open("r+b") as wal:
            wal.truncate(min(max(0, cut), sizes[-1]))
        found = open_journal(f"sqlite://{copy}/journal.db")
        try:
            names = [entry.key for entry in found.scan("volume-name/")]
            synced = sum(size <= cut for size in sizes)
            assert names[:synced] == [f"volume-name/{number:03}" for number in range(synced)]
            assert len(names) <= synced + 1
            found.write(Put("volume-name/new", {"id": "new"}), durable=True)
        finally:
            found.close()
    journal.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    image, place = tmp_path / "small.img", tmp_path / "small"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(2 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    yield place
    subprocess.run(["umount", place], check=False, capture_output=True)  # the drivers' sweep may have done it


@pytest.mark.root
@pytest.mark.needs("mkfs.ext4")
def test_a_full_disk_below_the_state_directory_doubles_nothing(small_disk: Path, drivers: Drivers) -> None:
    driver = drivers(state=small_disk / "state").start()
    co = Orchestrator(driver.client, driver.home)
    kind = capability(block=True)
    first = co.create("first", MIB, kind)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(4096))
                file.flush()
        except OSError:
            pass
    refused = set()
    for number in range(200):
        try:
            co.create(f"more-{number % 50}", MIB, kind)
        except CallError as error:
            refused.add(error.code)
    assert refused <= {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
    assert refused
    driver.client.call("Probe", timeout=60)
    assert co.create("first", MIB, kind).volume_id == first.volume_id
    ballast.unlink()
    made = {co.create(f"more-{number}", MIB, kind).volume_id for number in range(50)}
    assert sorted(co.volumes()) == sorted({first.volume_id, *made})
    assert len(driver.images()) == 51
    for volume_id in (first.volume_id, *made):
        co.delete(volume_id)
    assert driver.left() == []
