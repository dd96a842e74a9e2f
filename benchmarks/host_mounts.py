"""What a mount operation costs: volkit.host.mounts beside mount(8) and umount(8), with many mounts present.

Run as root: `python benchmarks/host_mounts.py [mounts …]`. Prints a Markdown table, p50 in microseconds.
Works in a mount namespace of its own, which goes with the process.

The mounts present are of another file system than the one measured. To bind costs the kernel (6.18) a walk
over all mounts of the same file system, by mount(2) and open_tree(2) alike: some 30 ns for each of them.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from volkit.host import mounts, process

CLONE_NEWNS = 0x20000
ROUNDS = 400
PROGRAM_ROUNDS = 40


def p50(call: Callable[[], object], rounds: int, undo: Callable[[], object] = lambda: None) -> float:
    """The median time of `call` in microseconds; `undo`, after each, is not counted."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        undo()
    return sorted(times)[rounds // 2] * 1e6


def program(*argv: str) -> Callable[[], object]:
    return lambda: subprocess.run(argv, check=True, capture_output=True)


def measure(source: str, target: str, missing: str) -> dict[str, float]:
    """Every operation at the number of mounts that are there now."""

    def bind() -> None:
        mounts.bind(source, target)

    def bind_read_only() -> None:
        mounts.bind(source, target, read_only=True)

    def unmount() -> bool:
        return mounts.unmount(target)

    def tmpfs() -> None:
        mounts.mount("none", target, "tmpfs", ["size=1M"])

    result = {
        "bind": p50(bind, ROUNDS, unmount),
        "bind read-only": p50(bind_read_only, ROUNDS, unmount),
        "mount tmpfs": p50(tmpfs, ROUNDS, unmount),
    }
    bind()
    result["unmount (bind)"] = p50(unmount, ROUNDS, bind)
    result["is_mount_point, yes"] = p50(lambda: mounts.is_mount_point(target), ROUNDS)
    result["is_mount_point, no"] = p50(lambda: mounts.is_mount_point(source), ROUNDS)
    result["mount_at"] = p50(lambda: mounts.mount_at(target), ROUNDS)
    result["same_mount"] = p50(lambda: mounts.same_mount(source, target), ROUNDS)
    result["mounts(under=)"] = p50(lambda: mounts.mounts(under=target), ROUNDS // 10)
    unmount()
    result["unmount, nothing there"] = p50(lambda: mounts.unmount(missing), ROUNDS)
    text = Path("/proc/self/mountinfo").read_bytes
    result["mountinfo: read"] = p50(text, ROUNDS // 10)
    result["mountinfo: read and parsed"] = p50(lambda: mounts.parse_mountinfo(text()), ROUNDS // 10)
    by_program = program("mount", "--bind", source, target)
    result["mount(8) --bind"] = p50(by_program, PROGRAM_ROUNDS, unmount)
    both = program("mount", "-o", "bind,ro", source, target)
    result["mount(8) -o bind,ro"] = p50(both, PROGRAM_ROUNDS, unmount)
    bind()
    result["umount(8)"] = p50(program("umount", target), PROGRAM_ROUNDS, bind)
    unmount()
    result["process.run: true"] = p50(lambda: process.run(["true"], timeout=10), PROGRAM_ROUNDS)
    return result


def main(counts: list[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        sys.exit(f"a mount namespace of its own needs root: {os.strerror(ctypes.get_errno())}")
    mounts.set_propagation("/", "private", recursive=True)
    with tempfile.TemporaryDirectory() as place:
        mounts.mount("none", place, "tmpfs")
        try:
            columns = run(place, counts)
        finally:
            mounts.unmount(place, lazy=True)
    print("| p50, µs | " + " | ".join(f"{count:,} mounts" for count in columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name in next(iter(columns.values())):
        print(f"| {name} | " + " | ".join(f"{column[name]:,.1f}" for column in columns.values()) + " |")


def run(place: str, counts: list[int]) -> dict[int, dict[str, float]]:
    source, target, crowd = f"{place}/source", f"{place}/target", f"{place}/crowd"
    for directory in (source, target, crowd):
        os.mkdir(directory)
    mounts.mount("none", source, "tmpfs")  # a file system of its own, as a volume has
    columns: dict[int, dict[str, float]] = {}
    present, made = len(mounts.mounts()), 0
    for count in sorted(counts):
        while present < count:
            made, present = made + 1, present + 1
            os.mkdir(f"{crowd}/{made}")
            mounts.bind(crowd, f"{crowd}/{made}")
        columns[present] = measure(source, target, f"{place}/missing")
    return columns


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [10, 1000, 5000])
