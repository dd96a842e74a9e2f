"""Counts the crash matrix, for docs/reliability.md: how many faults are tried in each operation, on memory and on loop.

Run as root: `python ci/matrix.py`. Each operation runs once, to see where it comes along; `make faults` tries them all.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from volkit.journal import open_journal
from volkit.testing import BackendSuite, Kit, Storage
from volkit.testing.children import in_child
from volkit.testing.matrix import SEQUELS, faults_of
from volkit.testing.memory import ArrayWitness, MemoryBackend, array_of, memory_settings
from volkit.testing.scenarios import SCENARIOS, Scenario


class MemorySuite(BackendSuite):
    backend = MemoryBackend
    mutable = {"tier": "slow"}  # noqa: RUF012 (read only)

    def storage(self, directory: Path) -> Storage:
        settings = memory_settings(root=directory)
        return Storage(settings=settings, witness=ArrayWitness(array_of(settings)), outlives=False)


class FileSuite(MemorySuite):
    def storage(self, directory: Path) -> Storage:
        settings = memory_settings(root=directory, file=directory / "array")
        return Storage(settings=settings, witness=ArrayWitness(array_of(settings)))


def loop_suite() -> BackendSuite:
    from volkit_loop.backend import LoopBackend
    from volkit_loop.options import LoopSettings
    from volkit_loop.witness import Images

    class LoopSuite(BackendSuite):
        backend = LoopBackend
        size = 16 << 20

        def storage(self, directory: Path) -> Storage:
            return Storage(settings=LoopSettings(pool=directory), witness=Images(directory))

    return LoopSuite()


def counted(suite: BackendSuite, name: str, *, kills: bool = False) -> int | None:
    """How many faults are tried in this operation; None where the backend has no such operation."""
    directory = Path(tempfile.mkdtemp(prefix="volkit-"))
    kit = Kit(suite, directory)
    try:
        if SCENARIOS[name].lacking(kit) or (kills and name == "reads"):
            return None
        return system_calls(kit, SCENARIOS[name]) if kills else faults(kit, SCENARIOS[name])
    finally:
        kit.close(judge=False)
        shutil.rmtree(directory, ignore_errors=True)


def faults(kit: Kit, scenario: Scenario) -> int:
    """Each failure at each point is followed by the same call, and by another one."""
    return len(faults_of(kit, scenario).each) * len(SEQUELS)


def system_calls(kit: Kit, scenario: Scenario) -> int:
    """A child process is killed at the beginning and at the end of each."""
    kit.open_journal = lambda: open_journal(f"sqlite://{kit.directory / 'killed.db'}")
    given = scenario.prepare(kit)
    kit.stop()

    def work() -> None:
        scenario.call(kit, given)
        kit.stop()

    return in_child(work).calls


def table() -> str:
    """The Markdown table of docs/reliability.md."""
    loop = loop_suite()
    columns = ((MemorySuite(), False), (loop, False), (FileSuite(), True), (loop, True))
    rows, sums = [], [0] * len(columns)
    for name in SCENARIOS:
        numbers = [counted(suite, name, kills=kills) for suite, kills in columns]
        sums = [total + (number or 0) for total, number in zip(sums, numbers, strict=True)]
        shown = [f"{number:,}" if number is not None else "–" for number in numbers]
        rows.append(f"| {name.replace('_', ' ')} | {' | '.join(shown)} |")
    heads = ("operation", "memory: faults", "loop: faults", "memory in a file: kill -9", "loop: kill -9")
    head = f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|"
    return "\n".join([head, *rows, f"| **in all** | {' | '.join(f'**{total:,}**' for total in sums)} |"])


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
