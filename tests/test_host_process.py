"""volkit.host.process with real programs: deadlines, process groups, output, secrets, and one that cannot be
killed.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from volkit.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable, VolkitError
from volkit.host import mounts, process
from volkit.model import Secrets

root = pytest.mark.root


def shell(script: str, *, timeout: float = 60, **more: Any) -> process.Result:
    return process.run(["sh", "-c", script], timeout=timeout, **more)


def python(script: str, **more: Any) -> process.Result:
    return process.run([sys.executable, "-c", script], timeout=60, **more)


def gone(pid: int) -> bool:
    """Whether the process ends within a minute; a zombie that nobody reaps counts."""
    for _ in range(3000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def children_of_this() -> set[str]:
    """The processes whose parent is this one, dead ones too."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                found.add(stat.parent.name)
    return found


class TestRun:
    def test_output_and_status(self) -> None:
        result = shell("echo out; echo err >&2; exit 3", ok=(0, 3))
        assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
        assert result.text == "out\n"
        assert "out" not in repr(result)

    def test_input(self) -> None:
        data = os.urandom(300_000)
        assert process.run(["cat"], timeout=20, input=data).stdout == data
        assert shell("cat", input=b"").stdout == b""
        assert shell("cat").stdout == b""

    def test_input_that_nobody_reads(self) -> None:
        assert shell("exec <&-; sleep 0.1; echo done", input=b"x" * 1_000_000).text == "done\n"

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
        lines = process.run(["env"], timeout=20, env={"EXTRA": "1"}).text.splitlines()
        assert {"LANG=C", "LC_ALL=C", "EXTRA=1"} <= set(lines)
        assert not any("hunter2" in line for line in lines)

    def test_system_programs_are_found_without_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "relative:")
        assert process.find_program("sh").startswith("/")
        assert shell("command -v sh").returncode == 0

    def test_descriptors(self, tmp_path: Path) -> None:
        kept, other = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
        os.set_inheritable(other, True)
        try:
            listing = shell("ls -l /proc/self/fd/", pass_fds=(kept,)).text
            assert f" {kept} -> {tmp_path}" in listing
            assert f" {other} -> " not in listing
        finally:
            os.close(kept)
            os.close(other)

    def test_a_long_output_keeps_its_end(self) -> None:
        script = "import os\nfor n in range(5): os.write(1, bytes([65 + n]) * 1000000)\nos.write(1, b'end')"
        result = python(script)
        assert len(result.stdout) == process.MAX_OUTPUT
        assert result.stdout.endswith(b"Eend")
        assert result.stdout.startswith(b"D")

    @pytest.mark.parametrize("argv", [[], ["sh", "a\0b"]])
    def test_impossible_arguments(self, argv: list[str]) -> None:
        with pytest.raises(InvalidArgument):
            process.run(argv, timeout=1)

    def test_old_kernels_have_no_pidfd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def pidfd_open(pid: int, flags: int = 0) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(os, "pidfd_open", pidfd_open)
        assert shell("echo a; sleep 0.1; echo b").text == "a\nb\n"
        os.kill(int(shell("sleep 100 & echo $!").text), 9)
        with pytest.raises(DeadlineExceeded):
            shell("sleep 100", timeout=0.2)

    def test_leaves_no_descriptor_and_no_child(self) -> None:
        before, children = sorted(os.listdir("/proc/self/fd")), children_of_this()
        for script in ("exit 0", "exit 1", "kill -9 $$", "sleep 100"):
            try:
                shell(script, timeout=0.3, input=b"x" * 100_000)
            except VolkitError:
                pass
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert children_of_this() == children


class TestFailures:
    def test_status(self) -> None:
        with pytest.raises(process.ProcessFailed) as caught:
            shell("echo explained here; echo version 1 >&2; exit 4")
        error = caught.value
        assert isinstance(error, FailedPrecondition)
        assert (error.program, error.returncode, error.stderr) == ("sh", 4, "version 1")
        assert "failed with status 4: explained here; version 1" in error.message

    def test_long_output_is_cut(self) -> None:
        with pytest.raises(process.ProcessFailed) as caught:
            shell("yes | head -c 100000; echo the reason; exit 1")
        assert caught.value.message.endswith("the reason")
        assert len(caught.value.message) < 3000

    def test_signal(self) -> None:
        with pytest.raises(process.ProcessKilled, match="Killed") as caught:
            shell("echo half way; kill -9 $$")
        assert isinstance(caught.value, Unavailable)
        assert "half way" in caught.value.message

    @pytest.mark.parametrize(
        ("program", "hint"),
        [("mkfs.btrfs", "btrfs-progs"), ("/nowhere/cryptsetup", "cryptsetup-bin"), ("nosuch", "install it")],
    )
    def test_missing(self, program: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "_search_path", lambda: ["/nowhere"])
        with pytest.raises(process.ProgramMissing, match=hint) as caught:
            process.run([program], timeout=1)
        assert isinstance(caught.value, FailedPrecondition)
        assert program in caught.value.message

    def test_not_a_program(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        broken.write_text("#!/nowhere/interpreter\n")
        broken.chmod(0o755)
        with pytest.raises(VolkitError, match="cannot start"):
            process.run([str(broken)], timeout=1)
        with pytest.raises(process.ProgramMissing):
            process.run([str(tmp_path)], timeout=1)


class TestSecrets:
    SCRIPT = 'echo "bad key $1" >&2; echo "given: $1"; exit 1'

    @pytest.mark.parametrize("secret", ["hunter2", "it's; $(a) secret", "zwölf", "first line\nsecond line"])
    def test_masked_in_arguments_and_output(self, secret: str) -> None:
        with pytest.raises(process.ProcessFailed) as caught:
            process.run(["sh", "-c", self.SCRIPT, "sh", f"key={secret}"], timeout=20, secrets=[secret, ""])
        for text in (caught.value.message, caught.value.stderr, repr(caught.value)):
            assert not any(line in text for line in secret.splitlines())
            assert "***" in text

    def test_values_of_a_mapping(self) -> None:
        with pytest.raises(process.ProcessFailed) as caught:
            process.run(
                ["sh", "-c", self.SCRIPT, "sh", "key=hunter2"],
                timeout=20,
                secrets=Secrets({"key": "hunter2"}),
            )
        assert "hunter2" not in caught.value.message
        assert "key=***" in caught.value.message

    def test_one_inside_another_and_at_the_cut(self) -> None:
        script = "printf 'abc-def abc %1018s' .; exit 1"
        with pytest.raises(process.ProcessFailed) as caught:
            shell(script, secrets=["abc", "abc-def"])
        assert "abc" not in caught.value.message
        assert "def" not in caught.value.message

    def test_masked_at_the_deadline(self) -> None:
        with pytest.raises(DeadlineExceeded) as caught:
            shell("echo hunter2; sleep 100 # hunter2", timeout=0.3, secrets="hunter2")
        assert "hunter2" not in caught.value.message
        assert "***" in caught.value.message


class TestDeadline:
    def test_grandchildren_are_killed(self) -> None:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"did not end within 2 s") as caught:
            shell("sleep 600 & echo child=$!; sleep 600", timeout=2)
        assert time.monotonic() - started < 300
        child = int(caught.value.message.rpartition("child=")[2].split()[0])
        assert gone(child)
        assert process.abandoned() == 0

    def test_a_daemon_left_behind_neither_delays_nor_dies(self) -> None:
        child = int(shell("sleep 600 & echo $!", timeout=120).text)  # no deadline, and not the child's end
        try:
            os.kill(child, 0)
        finally:
            os.kill(child, 9)
        assert gone(child)

    def test_a_program_that_closes_its_output_first(self) -> None:
        assert shell("exec >&- 2>&-; sleep 0.2; exit 7", ok=[7]).returncode == 7

    @pytest.mark.parametrize("timeout", [0, -1])
    def test_without_time_nothing_is_started(self, tmp_path: Path, timeout: int) -> None:
        with pytest.raises(DeadlineExceeded, match="not started"):
            process.run(["touch", str(tmp_path / "f")], timeout=timeout)
        assert not (tmp_path / "f").exists()

    def test_an_interrupt_kills_the_program(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[int] = []

        def communicate(running: subprocess.Popen[bytes], *rest: object) -> bool:
            started.append(running.pid)
            raise KeyboardInterrupt

        monkeypatch.setattr(process, "_communicate", communicate)
        with pytest.raises(KeyboardInterrupt):
            shell("sleep 100")
        assert gone(started[0])

    def test_places_are_bounded_and_waiting_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        places = threading.BoundedSemaphore(1)
        monkeypatch.setitem(process._places, "sleep", places)
        places.acquire()
        with pytest.raises(DeadlineExceeded, match=r"sleep was not started within 0\.2 s"):
            process.run(["sleep", "0"], timeout=0.2)
        assert process.run(["true"], timeout=60).returncode == 0  # another program's places
        first = threading.Timer(0.2, places.release)
        first.start()
        assert process.run(["sleep", "0"], timeout=60).returncode == 0  # after the first
        first.join()
        places.acquire(blocking=False)
        with pytest.raises(DeadlineExceeded):
            process.run(["sleep", "0"], timeout=0.2)


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A FUSE mount whose server says hello, takes requests and never answers: its callers sleep in state D.

    Yields its path and the server's descriptor. The layout is that of linux/fuse.h, protocol 7.23.
    """
    target = str(tmp_path / "hung")
    os.mkdir(target)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mounts.mount("none", target, "fuse", [f"fd={device}", "rootmode=40000", "user_id=0", "group_id=0"])
    try:
        _, _, unique = struct.unpack_from("=IIQ", os.read(device, 1 << 16))
        hello = struct.pack("=IIIIHHIIHHI28x", 7, 23, 0, 0, 12, 9, 4096, 1, 0, 0, 0)
        os.write(device, struct.pack("=IiQ", 16 + len(hello), 0, unique) + hello)
        yield target, device
    finally:
        os.close(device)  # aborts the connection: whoever sleeps wakes up
        mounts.unmount(target, lazy=True)


@root
class TestUnkillable:
    def test_abandoned_counted_and_reaped(
        self, hung: tuple[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target, device = hung
        server = threading.Thread(target=lambda: os.read(device, 1 << 16))  # takes the request, and is silent
        server.start()
        with pytest.raises(DeadlineExceeded):
            process.run(["stat", target], timeout=2)
        server.join()
        assert process.abandoned() == 1
        monkeypatch.setattr(process, "MAX_ABANDONED", 1)
        with pytest.raises(Unavailable, match="hang in the kernel"):
            process.run(["true"], timeout=20)
        subprocess.run(["umount", "-f", target], check=False, capture_output=True)  # aborts its requests
        for _ in range(3000):
            if process.abandoned() == 0:
                break
            time.sleep(0.02)
        assert process.abandoned() == 0
        assert process.run(["true"], timeout=20).returncode == 0


def test_many_threads_at_once() -> None:
    """More callers than places: every one gets its own output."""
    answers: dict[int, str] = {}

    def work(number: int) -> None:
        answers[number] = shell(f"echo {number}").text

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: f"{number}\n" for number in range(24)}
