"""The calls of a real kubelet 1.36 and controller manager, recorded on a live cluster, replayed one by one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from volkit.host import mounts
from volkit_flex.kubelet import DriverError, Kubelet, NotSupported

from .conftest import Host

pytestmark = pytest.mark.root

RECORDING = Path(__file__).parent / "kubelet-1.36.log"
_CALL = re.compile(r"[\d:.]+ (demo|demoatt) \[[a-z-]+\] (.*)")


def recorded(driver: str) -> list[list[str]]:
    """The calls of one driver, in order."""
    found = [_CALL.fullmatch(line) for line in RECORDING.read_text().splitlines()]
    return [shlex.split(one[2]) for one in found if one and one[1] == driver]


class Replay:
    """Makes recorded calls: kubelet's root, and the device that attach answered, are this test's."""

    def __init__(self, host: Host, kubelet: Kubelet) -> None:
        self.host, self.kubelet = host, kubelet
        self.device = "/dev/loop0"

    def adapted(self, words: list[str]) -> list[str]:
        words = [self.device if word == "/dev/loop0" else word for word in words]
        return [
            word.replace("/var/lib/kubelet", str(self.kubelet.root), 1) if word.startswith("/var/") else word
            for word in words
        ]

    def call(self, words: list[str]) -> None:
        words = self.adapted(words)
        for word in words[1:]:
            if words[0] in ("mount", "mountdevice") and word.startswith("/") and "/kubelet" in word:
                Path(word).mkdir(parents=True, exist_ok=True)  # as kubelet does
        answer = self.kubelet.call(*words)
        self.device = answer.get("device", self.device)


def test_a_driver_without_attach(host: Host) -> None:
    replay = Replay(host, host.install("--driver", "demo", vendor="volkit"))
    replay.kubelet.driver = host.plugins / "volkit~demo/demo"
    calls = recorded("demo")
    assert [words[0] for words in calls] == ["init", "init", "mount", "unmount"]
    for words in calls[:3]:
        replay.call(words)
    path = replay.adapted(calls[2])[1]
    (Path(path) / "data").write_text("kept")
    mount = mounts.mount_at(path)
    assert mount is not None
    assert mount.fs_type == "ext4"
    replay.call(calls[3])
    host.assert_clean()
    for words in calls[2:3]:  # another pod would have another uid; the volume is the option's
        replay.call(words)
    assert (Path(path) / "data").read_text() == "kept"
    replay.call(calls[3])
    host.assert_clean()
    assert len(host.images()) == 1


@pytest.mark.parametrize("fs_type", ["ext4", "xfs"])
def test_a_driver_with_attach_that_grows(host: Host, fs_type: str) -> None:
    """The kernel of some test machines grows ext4 offline only, so what grows mounted is xfs, from a size it takes."""
    kubelet = host.install("--driver", "demoatt", "--attach", "yes", vendor="volkit")
    kubelet.driver = host.plugins / "volkit~demoatt/demoatt"
    replay = Replay(host, kubelet)
    calls = recorded("demoatt")
    seen = []
    pod = Path()
    for words in calls:
        if fs_type == "xfs":
            grown = {"33554432": str(320 << 20), "67108864": str(384 << 20)}
            words = [
                grown.get(word, word).replace('"ext4"', '"xfs"').replace("32Mi", "320Mi") for word in words
            ]
        elif words[0] == "expandfs":
            continue
        replay.call(words)
        seen.append(words[0])
        if words[0] == "mount":
            pod = Path(replay.adapted(words)[1])
            (pod / "data").write_text("kept")
        if words[0] == "expandfs":
            assert (pod / "data").read_text() == "kept"
            total = _total(pod)
            assert total > 300 << 20  # 64 of 384 are the log
    assert {"attach", "waitforattach", "mountdevice", "mount", "unmount", "unmountdevice", "detach"} <= set(
        seen
    )
    host.assert_clean()
    assert len(host.images()) == 1
    if fs_type == "xfs":
        assert host.images()[0].stat().st_size == 384 << 20


def test_repeats_of_every_recorded_call_change_nothing(host: Host) -> None:
    """Kubelet repeats what it is not sure of; so each call is made three times."""
    kubelet = host.install("--driver", "demoatt", "--attach", "yes", vendor="volkit")
    kubelet.driver = host.plugins / "volkit~demoatt/demoatt"
    replay = Replay(host, kubelet)
    for words in recorded("demoatt"):
        if words[0] in ("getvolumename", "expandfs"):
            continue
        for _ in range(3):
            if words[0] in ("unmount", "unmountdevice") and not Path(replay.adapted(words)[1]).exists():
                continue  # kubelet skips it
            replay.call(words)
    host.assert_clean()


def test_calls_of_attach_are_not_for_a_driver_without(host: Host) -> None:
    kubelet = host.install()
    for words in recorded("demoatt"):
        if words[0] in ("attach", "waitforattach", "mountdevice", "unmountdevice", "detach"):
            with pytest.raises(NotSupported):
                kubelet.call(*words)
    host.assert_clean()
    assert host.images() == []


def test_out_of_order_calls_fail_and_touch_nothing(host: Host) -> None:
    kubelet = host.install("--attach", "yes")
    options = kubelet.options("pv-1", {"volume": "v1", "size": "32Mi"})
    with pytest.raises(DriverError, match="mountdevice comes first"):
        kubelet.call(
            "mount", kubelet.pod_path("u1", "pv-1"), kubelet.pod_options("u1", "pv-1", {"volume": "v1"})
        )
    kubelet.call("unmount", kubelet.pod_path("u1", "pv-1"))
    kubelet.call("unmountdevice", kubelet.device_path("pv-1"))
    kubelet.call("detach", "pv-1", "node1")
    assert kubelet.call("isattached", options, "node1")["attached"] is False
    assert host.images() == []
    host.assert_clean()


def _total(path: Path) -> int:
    import os

    found = os.statvfs(path)
    return found.f_frsize * found.f_blocks
