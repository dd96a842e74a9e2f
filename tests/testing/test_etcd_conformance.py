"""The suite on a controller whose journal is in a real cluster of etcd: a lock is a lease, a write a transaction."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from volkit.journal import Journal
from volkit.journal.etcd import EtcdJournal
from volkit.testing import BackendSuite, Storage
from volkit.testing.memory import ARRAYS, ArrayWitness, MemoryBackend, memory_settings


class ControllerOnly(MemoryBackend):
    node = None


@pytest.mark.needs("etcd", "etcdctl")
class TestOnEtcd(BackendSuite):
    backend = ControllerOnly
    mutable = {"tier": "slow"}  # noqa: RUF012 (read only)
    sample_faults = 12
    sampled: ClassVar[bool] = True
    sequences: ClassVar[int] = 3

    @pytest.fixture(autouse=True)
    def cluster(self, running_etcd: Any) -> None:
        self.etcd = running_etcd

    def storage(self, directory: Path) -> Storage:
        settings = memory_settings()
        return Storage(settings=settings, witness=ArrayWitness(ARRAYS[settings.array]), outlives=False)

    def journal(self) -> Journal:
        return EtcdJournal(self.etcd.url(ttl="5"))
