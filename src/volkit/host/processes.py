"""The processes of this machine, as proc(5) shows them: who runs, who hangs, and who has which files open.

Reading links, `stat` and `status` never waits. The words of a process's command line are read from its memory, which
may wait where it hangs in the kernel: ask for those in a process apart (`volkit.host.apart`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from attrs import frozen

_KTHREADD = 2
_SIGKILL_BIT = 1 << 8
_LOCK = "lock:"


@frozen(kw_only=True)
class Process:
    """One process. `state` is proc(5)'s letter (R runs, S waits, D waits in the kernel, T is stopped, Z has ended);
    `killed` says that SIGKILL waits for it, so that it ends when the kernel lets it go. `words` are its arguments.
    """

    pid: int
    parent: int
    name: str
    state: str
    killed: bool
    words: tuple[str, ...] = ()


def table(*, words: bool = True) -> list[Process]:
    """Every process of this pid namespace, kernel threads left out; with their arguments if `words`."""
    found = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with suppress(OSError, ValueError, KeyError):
            found.append(_read(pid, words=words))
    if not any(one.pid == _KTHREADD and one.name == "kthreadd" for one in found):  # a container's has none
        return found
    return [one for one in found if _KTHREADD not in (one.pid, one.parent)]


def read(pid: int) -> Process | None:
    """One process, without its arguments; None where it is gone."""
    try:
        return _read(pid, words=False)
    except (OSError, ValueError, KeyError):
        return None


def _read(pid: int, *, words: bool) -> Process:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return Process(
        pid=pid,
        parent=int(fields["PPid"]),
        name=fields["Name"],
        state=fields["State"].strip()[:1],
        killed=bool(pending & _SIGKILL_BIT),
        words=_words(pid) if words else (),
    )


def _words(pid: int) -> tuple[str, ...]:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return tuple(map(os.fsdecode, file.read().rstrip(b"\0").split(b"\0")))


def open_files(below: str) -> Iterator[tuple[int, int, str]]:
    """(pid, descriptor, path) of every file below a directory that another process has open."""
    prefix = below.rstrip("/") + "/"
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        if pid == os.getpid():
            continue
        with suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    path = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                    if path.startswith(prefix):
                        yield pid, int(descriptor), path


def locked_ranges(pid: int, descriptor: int) -> list[int]:
    """Where the locks begin that this open file holds of its file (fdinfo, proc(5)): bytes."""
    with suppress(OSError):
        with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii", errors="replace") as file:
            return [int(line.split()[-2]) for line in file if line.startswith(_LOCK)]
    return []
