"""What `volkit demo` needs of this host, and what it has left on it: as the kernel tells it, not as the
driver does.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Final

import volkit

CAP_SYS_ADMIN: Final = 21
CAP_SYS_RESOURCE: Final = 24  # linux/capability.h
TOOLS: Final = {
    "xfs": ("mkfs.xfs", "xfs_growfs", "xfsprogs"),
    "ext4": ("mkfs.ext4", "resize2fs", "e2fsprogs"),
}


def missing_for(fs_type: str) -> str:
    """What this machine lacks, in one sentence; "" where nothing is missing. No type is that of the local backend."""
    if not fs_type:
        return _missing_backend("local")
    if os.geteuid() != 0:
        return (
            "it needs root, for mounts and loop devices: run it with sudo, "
            "or without root as `volkit demo --backend local`"
        )
    if not os.path.exists("/dev/loop-control"):
        return "it needs loop devices, and /dev/loop-control is not there: run `modprobe loop`"
    *programs, package = TOOLS[fs_type]
    for program in programs:
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"it needs {program}: `apt-get install {package}`"
    return _missing_backend("loop")


def _missing_backend(name: str) -> str:
    try:
        volkit.load_backend(name)
    except volkit.VolkitError as error:
        return f"it needs the {name} backend: {error.message}"
    return ""


def has_capability(number: int) -> bool:
    """Does this process have the capability in effect (man 5 proc, CapEff)?"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def total(path: Path) -> int:
    """Bytes of the file system there."""
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def mounts(directory: Path) -> list[str]:
    """The mount points below a directory, in the order they were made (man 5 proc_pid_mountinfo)."""
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    points = [re.sub(r"\\([0-7]{3})", _octal, line.split(" ")[4]) for line in table.splitlines()]
    return [point for point in points if point.startswith(f"{directory}/")]


def _octal(found: re.Match[str]) -> str:
    return chr(int(found[1], 8))


def loop_devices(directory: Path) -> dict[str, str]:
    """The loop devices whose backing file is below a directory, also where it is deleted."""
    found = {}
    for attribute in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = attribute.read_text().strip()
        except OSError:  # detached since it was listed
            continue
        if file.startswith(f"{directory}/"):
            found[f"/dev/{attribute.parts[3]}"] = file
    return found


def processes(sessions: Collection[int]) -> list[str]:
    """What still runs in these sessions, zombies too (man 5 proc_pid_stat)."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (directory / "stat").read_text().rpartition(")")
        except OSError:  # ended since it was listed
            continue
        if int(rest.split()[3]) in sessions:
            found.append(name + ")")
    return found
