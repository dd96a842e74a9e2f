"""What a FlexVolume call costs, from fork to exit, beside a bare Python and a script that does the same bind mount.

Run as root: `python benchmarks/flex.py [mounts …]`. Prints a Markdown table, p50 in milliseconds, for each number of
mounts present. Works in a mount namespace of its own, which goes with the process; the loop devices are detached.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from volkit.host import loop, mounts
from volkit_flex.main import run

CLONE_NEWNS = 0x20000
ROUNDS = 41

SCRIPT = """\
#!/bin/sh
case $1 in
mount) mkdir -p "$2" && mount --bind "$SOURCE" "$2" ;;
unmount) umount "$2" && rmdir "$2" ;;
esac || exit 1
printf '%s\\n' '{"status":"Success"}'
"""


def p50(call: Callable[[], object], undo: Callable[[], object] = lambda: None) -> float:
    """The median time of `call` in milliseconds; `undo`, after each, is not counted."""
    return p50s(call, undo, lambda: None)[0]


def p50s(
    call: Callable[[], object], undo: Callable[[], object], other: Callable[[], object]
) -> tuple[float, float]:
    """The same, and that of `other`, which takes turns with it: a virtual machine is not always as fast."""
    times: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        call()
        ended = time.perf_counter()
        undo()
        again = time.perf_counter()
        other()
        times.append((ended - begun, time.perf_counter() - again))
    mine, theirs = (sorted(one)[ROUNDS // 2] * 1e3 for one in zip(*times, strict=True))
    return mine, theirs


def forked(*words: str | Path, **environ: str) -> Callable[[], object]:
    """The program, as kubelet runs one; it has to succeed."""
    env = {**os.environ, **environ}

    def call() -> None:
        done = subprocess.run(words, capture_output=True, env=env, check=False)
        assert done.returncode == 0, done.stdout

    return call


def measure(driver: Path, home: Path) -> dict[str, float]:
    """Each call-out of one driver. The second pod's mount is a bind; the first one's connects the device too."""
    volume = json.dumps({"volume": "bench", "size": "64Mi"})
    first, second = str(home / "first"), str(home / "second")
    up, down = forked(driver, "mount", first, volume), forked(driver, "unmount", first)
    up()
    down()
    result = {
        "init": p50(forked(driver, "init")),
        "getvolumename": p50(forked(driver, "getvolumename", volume)),
        "mount, first pod": p50(up, down),
    }
    up()
    bind, unbind = forked(driver, "mount", second, volume), forked(driver, "unmount", second)
    result["mount"], result["bare Python"] = p50s(
        bind, unbind, forked(sys.executable, "-I", "-S", "-c", "pass")
    )
    bind()
    result["mount, repeated"] = p50(bind)
    result["unmount"] = p50(unbind, bind)
    unbind()
    down()
    return result


def script(home: Path) -> dict[str, float]:
    """The same bind mount by a shell script."""
    path, source, target = home / "script", home / "source", str(home / "second")
    source.mkdir(exist_ok=True)
    path.write_text(SCRIPT)
    path.chmod(0o755)
    up = forked(path, "mount", target, SOURCE=str(source))
    down = forked(path, "unmount", target)
    result = {"init": p50(forked(path, "init")), "mount": p50(up, down)}
    up()
    result["unmount"] = p50(down, up)
    down()
    return result


def install(home: Path, mode: str) -> Path:
    flags = ["--backend", "loop", "-o", f"pool={home}/pool", "--state-dir", f"{home}/state", "--vendor", mode]
    with redirect_stdout(sys.stderr):
        assert run(["install", *flags, "--plugin-dir", f"{home}/exec", "--mode", mode]) == 0
    return home / f"exec/{mode}~loop/loop"


def serve(home: Path) -> subprocess.Popen[bytes]:
    flags = [
        "--backend",
        "loop",
        "-o",
        f"pool={home}/pool",
        "--state-dir",
        f"{home}/state",
        "--log-level",
        "error",
    ]
    daemon = subprocess.Popen([sys.executable, "-m", "volkit_flex.main", "serve", *flags])
    while not (home / "state/flex.run/daemon").exists():
        time.sleep(0.05)
    return daemon


def table(count: int, figures: dict[str, dict[str, float]]) -> None:
    names = list(figures)
    print(f"\n**{count} mounts present, p50 in ms**\n")
    print(f"| call | {' | '.join(names)} |")
    print(f"|---|{'---:|' * len(names)}")
    for call in figures["direct"]:
        row = [f"{figures[name][call]:.1f}" if call in figures[name] else "" for name in names]
        print(f"| {call} | {' | '.join(row)} |")


def main() -> int:
    counts = [int(word) for word in sys.argv[1:]] or [10, 5000]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        sys.exit("run it as root: it mounts")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    missed = 0
    with tempfile.TemporaryDirectory(prefix="volkit-bench-") as text:
        home = Path(text)
        (home / "pool").mkdir()
        many = home / "many"
        many.mkdir()
        mounts.mount("none", str(many), "tmpfs", ["size=64M"])
        drivers = {mode: install(home, mode) for mode in ("direct", "daemon")}
        daemon = serve(home)
        try:
            for present, count in zip([0, *counts], counts, strict=False):
                for number in range(present, count):
                    (many / str(number)).mkdir()
                    mounts.mount("none", str(many / str(number)), "tmpfs", ["size=4k"])
                figures = {mode: measure(driver, home) for mode, driver in drivers.items()}
                figures["script"] = script(home)
                table(count, figures)
                missed += judged(figures)
        finally:
            daemon.terminate()
            daemon.wait(30)
            for one in reversed(mounts.mounts(under=str(home))):
                mounts.unmount(one.mount_point)
            for image in home.glob("pool/volumes/*/*.img"):
                for device in loop.find(str(image)):
                    loop.detach(device)
    return 1 if missed else 0


def judged(figures: dict[str, dict[str, float]]) -> int:
    """Say whether the targets are met; returns how many are missed."""
    direct, daemon, by_script = figures["direct"], figures["daemon"], figures["script"]
    bare = direct["bare Python"]
    targets = {
        "init no slower than a bare Python": direct["init"] - bare,
        "mount within 80 ms of it, direct": direct["mount"] - bare - 80,
        "mount within 10 ms of the script, daemon": daemon["mount"] - by_script["mount"] - 10,
    }
    print()
    for name, over in targets.items():
        print(f"- {name}: {'met' if over <= 0 else f'missed by {over:.1f} ms'}")
    return sum(over > 0 for over in targets.values())


if __name__ == "__main__":
    sys.exit(main())
