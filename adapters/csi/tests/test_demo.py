"""`volkit demo` passes on real devices, cleans up when it fails, and its witness sees what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from volkit.cli import main as volkit_main
from volkit_csi import demo, witness
from volkit_csi.child import Driver, Failed, expect

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("mkfs.xfs", "xfs_growfs", "mkfs.ext4", "resize2fs", "losetup", "mount"),
]


def test_the_demo_passes_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(as_json=True, parent=str(tmp_path)) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["failure"], told["left"]) == (None, [])
    steps = [one["step"] for one in told["steps"]]
    for word in (
        "create",
        "stage",
        "publish",
        "snapshot",
        "expand",
        "kill -9",
        "again",
        "repeat",
        "unstage",
        "delete",
    ):
        assert any(word in step for step in steps), word
    assert all(one["seconds"] >= 0 for one in told["steps"])
    assert list(tmp_path.iterdir()) == []


def test_the_demo_of_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On btrfs, where their size is enforced."""
    (tmp_path / "image").touch()
    os.truncate(tmp_path / "image", 512 << 20)
    subprocess.run(["mkfs.btrfs", "-q", tmp_path / "image"], check=True)
    (tmp_path / "btrfs").mkdir()
    subprocess.run(["mount", "-o", "loop", tmp_path / "image", tmp_path / "btrfs"], check=True)
    try:
        assert demo.main("local", as_json=True, parent=str(tmp_path / "btrfs")) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["failure"], told["left"]) == (None, [])
        notes = [note for step in told["steps"] for note in step["notes"]]
        assert "64 to 128 MiB as its users see it" in notes
        assert list((tmp_path / "btrfs").iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path / "btrfs"], check=True)


@pytest.mark.copies_mounts
@pytest.mark.needs("unshare", "setpriv")
def test_the_demo_of_directories_is_for_everybody(tmp_path: Path) -> None:
    """Somebody without root, to whom a private mount namespace shows this Python where only root can go."""
    volkit = Path(sysconfig.get_path("scripts"), "volkit")
    needed = [volkit, Path(sys.executable).resolve(), *(Path(one) for one in sys.path if one)]
    closed = {one for path in needed for one in path.parents if not one.stat().st_mode & 0o001}
    home = tempfile.mkdtemp(prefix="volkit-test-")
    os.chown(home, 65534, 65534)
    lines = [
        "set -e",
        f"mount -t tmpfs none {tmp_path}",
        *(
            f"mkdir {tmp_path}/{n} {tmp_path}/{n}w; mount -t overlay overlay "
            f"-o lowerdir={path},upperdir={tmp_path}/{n},workdir={tmp_path}/{n}w {path}; chmod o+x {path}"
            for n, path in enumerate(sorted(closed, key=lambda path: len(path.parts)))
        ),
        f"cd {home}",
        f"export HOME={home} TMPDIR={home}",
        f"exec setpriv --reuid=65534 --regid=65534 --clear-groups {volkit} demo --backend local",
    ]
    try:
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines)],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Nothing is left: no mount" in done.stdout
        assert "that nothing enforces" in done.stdout
        assert os.listdir(home) == []
    finally:
        shutil.rmtree(home)


def test_the_demo_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv(
        "VOLKIT_OPTION_POOL", "/does/not/exist"
    )  # what is set for another driver does not reach this one
    monkeypatch.setenv("CSI_ENDPOINT", "unix:///does/not/exist.sock")
    assert volkit_main(["demo", "--keep"]) == 0
    shown = capsys.readouterr()
    assert all(" ms  " in line for line in shown.out.splitlines()[:-1])
    assert shown.out.splitlines()[-1].startswith(
        "Nothing is left: no mount, no loop device, no file, no process."
    )
    [kept] = tmp_path.iterdir()
    assert str(kept) in shown.err
    assert "serving on" in (kept / "driver.log").read_text()


@pytest.mark.parametrize("step", ["_snapshot", "_restore_through_a_crash", "_delete"])
def test_a_failed_demo_says_so_and_cleans_up(
    step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise Failed("it is the day after")

    monkeypatch.setattr(demo.Demo, step, fail)
    assert demo.main(parent=str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert "volkit demo: failed: it is the day after" in err
    assert "the end of the driver's log" in err
    assert "left behind: " in err
    assert list(tmp_path.iterdir()) == []
    assert witness.mounts(tmp_path) == []
    assert witness.loop_devices(tmp_path) == {}


def test_the_witness_sees_what_is_left(tmp_path: Path) -> None:
    work = tmp_path / "a b"
    (work / "mnt").mkdir(parents=True)
    image = work / "pool"
    image.mkdir()
    image /= "image"
    image.write_bytes(bytes(1 << 20))
    run = demo.Demo(work, "xfs", demo.Report(False))
    assert run.left() == ["file pool/image"]
    device = ""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(work / "mnt")], check=True)
        device = subprocess.check_output(["losetup", "--find", "--show", str(image)], text=True).strip()
        run.driver.sessions.append(child.pid)
        (work / "volume-target").mkdir()
        left = run.left()
        assert f"mount {work}/mnt" in left
        assert f"loop device {device} on {image}" in left
        assert f"path {work}/volume-target" in left
        assert any(one.startswith(f"process {child.pid} (python") for one in left)
    finally:
        child.kill()
        child.communicate()
        run.clean_up()
    assert run.left() == ["file pool/image", f"path {work}/volume-target"]
    assert device


def test_nothing_is_removed_while_it_is_mounted(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "mnt").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(work / "mnt")], check=True)
    try:
        with (work / "mnt" / "open").open("wb"), pytest.raises(SystemExit, match="still mounted, so"):
            demo.Demo(work, "xfs", demo.Report(False)).clean_up()
        assert (work / "mnt" / "open").exists()
    finally:
        subprocess.run(["umount", str(work / "mnt")], check=True)


def test_what_is_missing_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert witness.missing_for("xfs") == ""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert volkit_main(["demo"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "volkit demo: it needs root, for mounts and loop devices: run it with sudo, "
        "or without root as `volkit demo --backend local`\n"
    )
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "which", lambda program, path: None)
    assert witness.missing_for("xfs") == "it needs mkfs.xfs: `apt-get install xfsprogs`"
    assert witness.missing_for("ext4") == "it needs mkfs.ext4: `apt-get install e2fsprogs`"


def test_capabilities_are_those_of_the_kernel() -> None:
    assert witness.has_capability(21)  # CAP_SYS_ADMIN: or nothing here would run
    assert not witness.has_capability(63)


def test_a_driver_that_cannot_start_is_told(tmp_path: Path) -> None:
    (tmp_path / "pool").write_text("no directory")
    driver = Driver(tmp_path)
    with pytest.raises(Failed, match=r"the driver ended with [12]"):
        driver.start()
    assert driver.kill() is not None
    assert driver.kill() is None
    assert "pool" in driver.log.read_text()


def test_a_driver_is_killed_and_started_again(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    driver = Driver(tmp_path)
    try:
        driver.start()
        assert driver.kill(signal.SIGKILL) == -signal.SIGKILL
        assert driver.start().GetPluginInfo().name
        assert len(driver.sessions) == 2
        assert witness.processes(driver.sessions)
        assert driver.kill(signal.SIGTERM) == 0
    finally:
        driver.kill()
    assert witness.processes(driver.sessions) == []


def test_expect() -> None:
    expect(True, "unseen")
    with pytest.raises(Failed, match="seen"):
        expect(False, "seen")
