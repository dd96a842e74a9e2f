"""Counts the crash matrix, for docs/reliability.md: how many faults each case injects, on memory and on loop devices.

Run as root: `python ci/matrix.py`. All of them are tried; a fault that ends badly fails the script.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from volkit.testing import BackendSuite, Kit, OwnListing, Storage
from volkit.testing.kit import missing
from volkit.testing.memory import MemoryBackend, MemoryController, memory_settings
from volkit.testing.suite import CASES


class MemorySuite(BackendSuite):
    backend = MemoryBackend
    mutable = {"tier": "slow"}  # noqa: RUF012 (read only)

    def storage(self, directory: Path) -> Storage:
        settings = memory_settings(root=directory)
        return Storage(settings=settings, witness=OwnListing(MemoryController(settings)), outlives=False)


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


def counted(suite: BackendSuite, case: str) -> int | None:
    """How many faults the case injects, all of which must end well; None where the backend has no such operation."""
    directory = Path(tempfile.mkdtemp(prefix="volkit-"))
    try:
        kit = Kit(suite, directory, full=True)
        kills = case.startswith("test_kill_") and not kit.storage.outlives
        if kills or missing(CASES[case], kit.has):
            kit.close(judge=False)
            return None
        CASES[case](suite, kit)
        kit.close()
        return kit.tried
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def operations() -> list[str]:
    """What faults are injected into, in the order of the lifecycle."""
    names = [name.removeprefix("test_faults_in_") for name in CASES if name.startswith("test_faults_in_")]
    return sorted(names, key=lambda name: (name in ("stage", "publish", "unpublish", "unstage"), name))


def table() -> str:
    """The Markdown table of docs/reliability.md."""
    columns = ((MemorySuite(), "faults"), (loop_suite(), "faults"), (loop_suite(), "kill"))
    rows, sums = [], [0, 0, 0]
    for name in operations():
        numbers = [counted(suite, f"test_{kind}_in_{name}") for suite, kind in columns]
        sums = [total + (number or 0) for total, number in zip(sums, numbers, strict=True)]
        shown = [f"{number:,}" if number is not None else "–" for number in numbers]
        rows.append(f"| {name.replace('_', ' ')} | {' | '.join(shown)} |")
    head = "| operation | memory: faults | loop: faults | loop: kill -9 |\n|---|---|---|---|"
    return "\n".join([head, *rows, f"| **in all** | **{sums[0]:,}** | **{sums[1]:,}** | **{sums[2]:,}** |"])


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
