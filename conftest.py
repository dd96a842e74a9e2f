"""Rules that every test of the workspace obeys: what may be skipped, and that nothing is left on the host.

On CI (``CI=true``) a skip fails the run unless ``ci/expected-skips.txt`` lists it with its reason.
Anywhere, a run that leaves a mount below its temporary directory, or a loop device on a file there, fails and
names it. On CI any new mount or loop device does, but for those of other runs' temporary directories.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import random
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
ON_CI = os.environ.get("CI") == "true"
INSTALL = {
    "blkid": "apt-get install util-linux",
    "btrfs": "apt-get install btrfs-progs",
    "etcd": "apt-get install etcd-server",
    "etcdctl": "apt-get install etcd-client",
    "csi-sanity": "install Go and run `make test`",
    "fsck.ext4": "apt-get install e2fsprogs",
    "mkfs.btrfs": "apt-get install btrfs-progs",
    "mkfs.ext4": "apt-get install e2fsprogs",
    "mkfs.xfs": "apt-get install xfsprogs",
    "openssl": "apt-get install openssl",
    "radosgw": "apt-get install ceph-mon ceph-osd ceph-common radosgw",
    "rclone": "run `make venv`",
    "resize2fs": "apt-get install e2fsprogs",
    "s3fs": "apt-get install s3fs fuse3",
    "udevadm": "apt-get install udev",
    "xfs_growfs": "apt-get install xfsprogs",
    "xfs_repair": "apt-get install xfsprogs",
}
SEARCH = os.pathsep.join(
    [str(ROOT / ".venv/bin"), os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]
)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A driver sets its process's log up; here the process is that of all tests, and the stream ends with one."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = [one for one in root.handlers if one in before]
    root.setLevel(level)


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """TCP ports of this machine for servers that are told theirs. None is one that the kernel gives to others, as to
    every connection that begins: one of those may be taken again before the server has it, or while it starts anew.
    """
    given: set[int] = set()

    def free(number: int) -> list[int]:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
        below = [port for port in range(max(1025, first - 12_000), first) if port not in given]
        found: list[int] = []
        # at random: another worker of pytest-xdist looks too
        for port in random.SystemRandom().sample(below, len(below)):
            if len(found) == number:
                break
            with suppress(OSError), socket.create_server(("127.0.0.1", port)):
                found.append(port)
        assert len(found) == number, "no port is free"
        given.update(found)
        return found

    return free


Things = dict[str, str]  # what is on the host: a mount point or a loop device, and its source or backing file


def pytest_configure(config: pytest.Config) -> None:
    # begun in the background, a run ignores it, and so would every program that it starts
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist leaves judging to its controller
        config.pluginmanager.register(Rules())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here, with the reason and what to install."""
    for item in items:
        if os.geteuid() != 0 and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: run `sudo make test`"))
        wanted = [program for mark in item.iter_markers("needs") for program in mark.args]
        if item.get_closest_marker("sanity"):
            wanted.append("csi-sanity")
        for program in wanted:
            if shutil.which(program, path=SEARCH) is None:
                how = INSTALL.get(program, "install it")
                item.add_marker(pytest.mark.skip(reason=f"{program} is missing: {how}"))


class Rules:
    """Looks at the host before and after the run and at the skips, and fails it where a rule was broken."""

    def __init__(self) -> None:
        self.start = {**mounts(), **loop_devices()}
        self.faults: list[str] = []

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        config = session.config
        if ON_CI:
            allowed = expected_skips((ROOT / "ci/expected-skips.txt").read_text(encoding="utf-8"))
            self.faults += unexpected_skips(config, allowed)
        tmp = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        self.faults += left_over(self.start, {**mounts(), **loop_devices()}, tmp, everything=ON_CI)
        if self.faults and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.faults:
            terminalreporter.section("rules of this repository", sep="=", red=True, bold=True)
            for fault in self.faults:
                terminalreporter.write_line(fault)


def unexpected_skips(config: pytest.Config, allowed: list[str]) -> list[str]:
    """Name the skipped tests and modules that no pattern of ``allowed`` matches, each with its reason."""
    reporter: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    found = []
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skip = f"{report.nodeid}: {reason.removeprefix('Skipped: ')}"
        if not any(fnmatch.fnmatchcase(skip, pattern) for pattern in allowed):
            found.append(f"unexpected skip: {skip}")
    return found


def expected_skips(text: str) -> list[str]:
    """Parse lines of ``pattern: reason``: a shell pattern over node ids, and one over why these are skipped."""
    allowed = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pattern, separator, reason = line.partition(": ")
        if not separator or not reason.strip():
            raise pytest.UsageError(f"ci/expected-skips.txt: {line!r} has no reason: write `pattern: reason`")
        allowed.append(f"{pattern.strip()}: {reason.strip()}")
    return allowed


def left_over(start: Things, end: Things, tmp: Path, *, everything: bool) -> list[str]:
    """Name what is on the host at the end and was not before: what is below ``tmp``, or ``everything`` but what others
    have in the directory for temporary files.
    """

    def is_ours(*paths: str) -> bool:
        if any(path.startswith(f"{tmp}/") for path in paths):
            return True
        return everything and not any(path.startswith(f"{tempfile.gettempdir()}/") for path in paths)

    return [
        f"left behind: {thing} ({shows})"
        for thing, shows in sorted(end.items())
        if start.get(thing) != shows and is_ours(thing, shows)
    ]


def mounts() -> Things:
    """Every mount point of this namespace with its source (man 5 proc_pid_mountinfo)."""
    table: Things = {}
    for line in (
        Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    ):
        fields = line.split(" ")
        source = fields[fields.index("-") + 2]
        table[unescape(fields[4])] = unescape(source)
    return table


def unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def loop_devices() -> Things:
    """Every attached loop device with its backing file (sysfs, ``loop/backing_file``)."""
    table: Things = {}
    for attribute in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            table[f"/dev/{attribute.parts[3]}"] = attribute.read_text(
                encoding="utf-8", errors="surrogateescape"
            ).strip()
        except OSError:  # detached since the listing
            continue
    return table
