"""The platform below a driver: programs, kernel, rights, mount propagation, kubelet's directories, versions, the clock.

What is missing is `unfit` where volumes cannot work so, and `advice` where only some cannot.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from volkit.doctor.files import is_stale
from volkit.doctor.finding import ANSWER_SECONDS, Finding
from volkit.doctor.node import Table
from volkit.engine import Engine
from volkit.errors import FailedPrecondition, VolkitError
from volkit.host import apart, filesystems, process, processes
from volkit.journal import key
from volkit.model import BlockVolume
from volkit.status import running

KUBELET_DIRECTORIES: Final = (
    "/var/lib/kubelet",
    "/var/snap/microk8s/common/var/lib/kubelet",
    "/var/lib/k0s/kubelet",
)
"""Where distributions have kubelet's root directory."""

LEAST_KERNEL: Final = (5, 8)
"""The first kernel whose statx tells mount points; before it they are told from mountinfo, slowly."""

FUTURE_SECONDS: Final = 300.0

_CAP_SYS_ADMIN: Final = 21
_GROWS: Final = {"ext3": "resize2fs", "ext4": "resize2fs", "xfs": "xfs_growfs", "btrfs": "btrfs"}
_CHECKS: Final = {"ext3": "e2fsck", "ext4": "e2fsck", "btrfs": "btrfs"}
_PACKAGES: Final = {"xfs_growfs": "xfsprogs"}
_PINNED: Final = re.compile(r"^volkit-sdk\s*==\s*([\w.]+)")


def examine_platform(engine: Engine, table: Table) -> Iterator[Finding]:
    """What of this machine keeps volumes from working."""
    yield from _versions(engine)
    yield from _clock(engine)
    if engine.node_state is None:
        return
    yield from _rights()
    yield from _kernel(engine)
    yield from _programs(engine)
    if (kubelet := kubelet_directory()) is not None:
        yield from _propagation(kubelet, table)
        yield from _registration(engine, kubelet)


def _unfit(what: str, command: str) -> Finding:
    return Finding(sort="unfit", what=what, command=command)


def _advice(what: str, command: str) -> Finding:
    return Finding(sort="advice", what=what, command=command)


# -- programs and kernel -------------------------------------------------------------------------------------


def _fs_types(engine: Engine) -> tuple[str, ...]:
    """The file systems that volkit makes here, the default first; none where volumes have their own."""
    return tuple(engine.backend.limits.fs_types) if issubclass(engine.backend.volume, BlockVolume) else ()


def _programs(engine: Engine) -> Iterator[Finding]:
    for number, fs_type in enumerate(_fs_types(engine)):
        kind = filesystems.SUPPORTED.get(fs_type)
        if kind is None:
            continue
        wanted = [kind.make[0], _GROWS.get(fs_type, ""), _CHECKS.get(fs_type, "")]
        missing = [one for one in dict.fromkeys(filter(None, wanted)) if not _has(one)]
        if missing:
            say = _advice if number else _unfit
            which = "volumes are" if number == 0 else f"volumes with {fs_type} are"
            what = f"{', '.join(missing)} is not installed: {which} not made, checked or grown"
            yield say(what, f"apt-get install {kind.package}")
    if engine.node_state is not None and engine.node_state.programs and not _is_device("/dev/fuse"):
        yield _unfit("/dev/fuse is missing: no program can serve a volume", "modprobe fuse")


def _has(program: str) -> bool:
    try:
        process.find_program(program)
    except FailedPrecondition:
        return False
    return True


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def _rights() -> Iterator[Finding]:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    if effective and not int(effective[1], 16) >> _CAP_SYS_ADMIN & 1:
        what = (
            "this process may not mount (CAP_SYS_ADMIN): the node service needs it, and so does a look at it"
        )
        yield _unfit(what, "sudo volkit doctor  # in Kubernetes: securityContext.privileged: true")


def _kernel(engine: Engine) -> Iterator[Finding]:
    release = os.uname().release
    found = tuple(map(int, re.findall(r"\d+", release)[:2]))
    if found < LEAST_KERNEL:
        least = ".".join(map(str, LEAST_KERNEL))
        yield _advice(f"the kernel is {release}: from {least} on, mounts are found at once", "uname -r")
    known = Path("/proc/filesystems").read_text(encoding="ascii", errors="replace").split()
    for number, fs_type in enumerate(_fs_types(engine)):
        if fs_type not in known and not _is_module(fs_type, release):
            say = _advice if number else _unfit
            yield say(f"the kernel has no {fs_type}: volumes with it are not mounted", f"modprobe {fs_type}")


def _is_module(name: str, release: str) -> bool:
    """Could the kernel load it? Also where that cannot be seen from here, as in a container."""
    directory = Path("/lib/modules", release)
    lists = [one for one in (directory / "modules.dep", directory / "modules.builtin") if one.exists()]
    pattern = re.compile(rf"/{re.escape(name)}\.ko")
    return not lists or any(pattern.search(one.read_text(errors="replace")) for one in lists)


# -- kubelet -------------------------------------------------------------------------------------------------


def kubelet_directory() -> str | None:
    """kubelet's root directory: what its command line says, or one of `KUBELET_DIRECTORIES`; None without one."""
    try:
        for one in apart.call(processes.table, timeout=ANSWER_SECONDS):
            if one.name == "kubelet" and (told := _root_dir(one.words)):
                return told
    except VolkitError:
        pass  # a process hangs: the usual places, then
    return next((one for one in KUBELET_DIRECTORIES if os.path.isdir(f"{one}/plugins_registry")), None)


def _root_dir(words: tuple[str, ...]) -> str:
    for number, word in enumerate(words):
        if word.startswith("--root-dir="):
            return word.partition("=")[2]
        if word == "--root-dir" and number + 1 < len(words):
            return words[number + 1]
    return ""


def _propagation(kubelet: str, table: Table) -> Iterator[Finding]:
    """What is mounted below kubelet's directory has to be seen by kubelet, and in the containers of pods."""
    around = table.around(kubelet)
    if around is not None and "shared" not in around.propagation:
        what = (
            f"{kubelet} is in the mount {around.mount_point}, which is {around.propagation}: what the driver mounts "
            "there is not seen outside its own mount namespace"
        )
        command = shlex.join(["mount", "--make-rshared", around.mount_point])
        yield _unfit(what, f"{command}  # in a pod: mountPropagation: Bidirectional")


def _registration(engine: Engine, kubelet: str) -> Iterator[Finding]:
    """A driver that kubelet is to call has its socket in kubelet's directory, and was registered there."""
    registry = f"{kubelet}/plugins_registry"
    for note in sorted((engine.state_dir / "sockets").glob("*")):
        try:
            endpoint = note.read_text()
        except OSError:
            continue
        if is_stale(endpoint) or not os.path.exists(endpoint):
            continue
        if not endpoint.startswith(f"{kubelet}/plugins"):
            what = f"the driver listens on {endpoint}, and kubelet mounts nothing into pods but from {kubelet}/plugins"
            yield _advice(what, f"volkit-csi --endpoint unix://{kubelet}/plugins/NAME/csi.sock")
            continue
        name = Path(endpoint).parent.name
        sockets = [f"{registry}/{name}-reg.sock", endpoint if endpoint.startswith(f"{registry}/") else ""]
        if not any(one and os.path.exists(one) and not is_stale(one) for one in sockets):
            what = f"the driver on {endpoint} is not registered with kubelet: nobody listens on {sockets[0]}"
            yield _unfit(what, f"ls -l {shlex.quote(registry)}  # node-driver-registrar makes it")


# -- versions and time ---------------------------------------------------------------------------------------


def _versions(engine: Engine) -> Iterator[Finding]:
    sdk = metadata.version("volkit-sdk")
    for one in metadata.distributions():
        name = one.metadata["Name"] or ""
        for wanted in one.requires or ():
            pinned = _PINNED.match(wanted)
            if pinned and pinned[1] != sdk:
                what = f"{name} {one.version} is for volkit-sdk {pinned[1]}, and {sdk} is installed"
                yield _unfit(what, f"pip install --upgrade {shlex.quote(name)} volkit-sdk")
    for told in running(engine.state_dir):
        if told.get("version") not in (None, sdk):
            what = f"the driver that runs (pid {told['pid']}) is of volkit {told['version']}, and {sdk} is installed"
            yield _advice(what, "start the driver again")


def _clock(engine: Engine) -> Iterator[Finding]:
    """Records of the future: the clock was set back, and ages and leases cannot be told."""
    now = time.time()
    for journal in dict.fromkeys((engine.journal, engine.node_journal)):
        for entry in journal.scan(key("")):
            since = entry.value.get("since")
            if isinstance(since, int | float) and since > now + FUTURE_SECONDS:
                what = f"the record {entry.key} is {since - now:.0f} s in the future: the clock was set back"
                yield _unfit(what, "timedatectl status")
                return
