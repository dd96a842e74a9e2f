"""Measures volkit-csi beside the CSI drivers found on PATH (drivers.PEERS), in one run, taking turns.

    python benchmarks/csi.py [--quick] [--json FILE] [--only NAME] [--dir DIR] [--strict]

Needs root, and Go to build the load client in benchmarks/load. Prints markdown tables and how the figures
stand to the project's targets; each figure is the median of the rounds. Everything is made in one directory
below --dir (by default /var/tmp, which is on a disk: on a tmpfs every sync would be free) and is removed at
the end, also when interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from drivers import PEERS, Driver, Peer, present, search_path, sweep, unrelated_mounts
from figures import CELLS, QUICK, Figures, Plan, report, targets, verdicts

LOAD = Path(__file__).parent / "load"
FILL_BYTES = 1 << 20  # the smallest that every peer makes


def measure_start(drivers: list[Driver], plan: Plan, figures: Figures) -> None:
    for driver in drivers:
        with figures.measuring(f"start of {driver.peer.name}"):
            got = driver.load("start", "--count", str(plan.starts), after=("--", *driver.command))
            figures.quantiles(driver.peer, "start", got["first_probe"])
            figures.quantiles(driver.peer, "stop", got["stop"])


def measure_raw(drivers: list[Driver], plan: Plan, figures: Figures) -> None:
    for driver in drivers:
        with figures.measuring(f"raw RPC of {driver.peer.name}"):
            got = driver.load("probe", "--callers", "32", "--duration", f"{plan.probe_seconds}s")
            figures.quantiles(driver.peer, "raw", got["one_caller"])
            figures.add(driver.peer, "raw/per_s", got["rpcs_per_s"])


def measure_lifecycles(drivers: list[Driver], plan: Plan, figures: Figures) -> None:
    for mode, callers in CELLS:
        count = plan.lifecycles[callers > 1]
        for driver in drivers:
            with figures.measuring(f"lifecycle {mode}, {callers} callers, of {driver.peer.name}"):
                got = driver.load(
                    "lifecycle", "--mode", mode, "--callers", str(callers), "--count", str(count)
                )
                figures.add(driver.peer, f"{mode}/{callers}/per_s", got["volumes_per_s"])
                for rpc, values in got["rpc"].items():
                    figures.quantiles(driver.peer, f"{mode}/{callers}/{rpc}", values)
                if got["retries"]:
                    figures.notes.append(
                        f"{driver.peer.name}, {mode}, {callers} callers: retried {got['retries']}"
                    )
            if left := driver.left():
                figures.failures.append(
                    f"{driver.peer.name} left behind after {mode}, {callers} callers: {left[:5]}"
                )


def measure_mounts(drivers: list[Driver], plan: Plan, figures: Figures, root: Path) -> None:
    for count in plan.mounts:
        with unrelated_mounts(count, root):
            for driver in drivers:
                with figures.measuring(f"publish with {count} mounts, {driver.peer.name}"):
                    got = driver.load("publish-at", "--count", str(plan.publishes))
                    for rpc in ("NodePublishVolume", "NodeUnpublishVolume"):
                        figures.quantiles(driver.peer, f"mounts/{count}/{rpc}", got["rpc"][rpc])


def measure_memory(drivers: list[Driver], plan: Plan, figures: Figures) -> None:
    time.sleep(1)
    for driver in drivers:
        figures.add(driver.peer, "rss/idle", driver.rss())
    for driver in drivers:
        with figures.measuring(f"memory of {driver.peer.name}"):
            _fill(driver, f"m{plan.memory_at}", plan.memory_at, plan)
            figures.add(driver.peer, f"rss/{plan.memory_at}", driver.rss())


def _fill(driver: Driver, prefix: str, count: int, plan: Plan) -> int:
    """Create `count` volumes more; how many it were within the plan's time."""
    size = ("--size", str(FILL_BYTES))
    got = driver.load(
        *(
            "fill",
            "--prefix",
            prefix,
            "--callers",
            "16",
            "--count",
            str(count),
            "--give-up",
            f"{plan.give_up}s",
        ),
        *size,
    )
    return int(got["created"])


def measure_growth(drivers: list[Driver], plan: Plan, figures: Figures) -> None:
    there = dict.fromkeys((driver.peer.name for driver in drivers), 0)
    for size in plan.sizes:
        for driver in drivers:
            name = driver.peer.name
            with figures.measuring(f"{size} volumes of {name}"):
                there[name] += _fill(driver, f"f{size}", size - there[name], plan)
                if there[name] < size:
                    figures.notes.append(
                        f"{name}: {there[name]:,} of {size:,} volumes after {plan.give_up} s"
                    )
                else:
                    _measure_size(driver, size, plan, figures)


def _measure_size(driver: Driver, size: int, plan: Plan, figures: Figures) -> None:
    got = driver.load("create-at", "--count", str(plan.samples), "--size", str(FILL_BYTES))
    for rpc in ("CreateVolume", "DeleteVolume"):
        figures.quantiles(driver.peer, f"size/{size}/{rpc}", got["rpc"][rpc])
    rounds = 5 if size > 1_000 else 20
    got = driver.load("list", "--page", "500", "--rounds", str(rounds))
    figures.quantiles(driver.peer, f"size/{size}/page", got["page"])
    if got["entries"] != size or got["duplicates"]:
        shown = f"ListVolumes showed {got['entries']:,} entries, {got['duplicates']} of them twice"
        figures.notes.append(f"{driver.peer.name}: {shown}, of {size:,} volumes")


def run(peers: list[Peer], plan: Plan, root: Path, csiload: Path) -> Figures:
    figures = Figures()
    with ExitStack() as stack:
        drivers = _start(stack, peers, root, csiload, figures)
        for number in range(1, plan.rounds + 1):
            turn = drivers if number % 2 else drivers[::-1]  # so that nobody always goes first
            _say(f"round {number} of {plan.rounds}: raw RPC, lifecycles, publish beside other mounts")
            measure_raw([driver for driver in turn if not driver.peer.variant], plan, figures)
            measure_lifecycles(turn, plan, figures)
            measure_mounts(turn, plan, figures, root)
    once = [peer for peer in peers if not peer.variant]
    with ExitStack() as stack:
        _say("memory, idle and with volumes")
        measure_memory(_start(stack, once, root, csiload, figures), plan, figures)
    with ExitStack() as stack:
        _say(f"ListVolumes and CreateVolume at {', '.join(f'{size:,}' for size in plan.sizes)} volumes")
        measure_growth(_start(stack, once, root, csiload, figures), plan, figures)
    _say("start to first Probe")
    idle = [Driver(peer, root, csiload) for peer in once]
    for _ in range(plan.rounds):
        measure_start(idle, plan, figures)
    return figures


def _start(stack: ExitStack, peers: list[Peer], root: Path, csiload: Path, figures: Figures) -> list[Driver]:
    started = []
    for peer in peers:
        with figures.measuring(f"starting {peer.name}"):
            started.append(stack.enter_context(Driver(peer, root, csiload)))
    return started


def _say(what: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {what}", file=sys.stderr, flush=True)


def machine() -> dict[str, str]:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") / 2**30
    return {
        "kernel": platform.release(),
        "cpus": f"{os.cpu_count()} x {model or platform.machine()}",
        "memory": f"{memory:.0f} GiB",
        "python": platform.python_version(),
    }


def build_csiload(root: Path) -> Path:
    go = shutil.which("go")
    if go is None:
        sys.exit(
            "csi.py: the load client is written in Go: install Go 1.25 or newer, or give a built --csiload."
        )
    binary = root / "csiload"
    built = subprocess.run(
        [go, "build", "-buildvcs=false", "-o", str(binary), "."],
        cwd=LOAD,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        sys.exit(f"csi.py: go build in benchmarks/load failed:\n{built.stderr}")
    return binary


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures volkit-csi beside the CSI drivers found on PATH.")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run of about a minute: its figures are rough"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    parser.add_argument("--only", action="append", choices=[peer.name for peer in PEERS], help="repeatable")
    parser.add_argument(
        "--dir", type=Path, default=Path("/var/tmp"), help="where the pools go: a directory on a disk"
    )
    parser.add_argument("--csiload", type=Path, help="a load client already built")
    parser.add_argument(
        "--strict", action="store_true", help="end with status 1 when a target is missed or not measured"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        sys.exit("csi.py: mounts and loop devices need root.")
    peers = [peer for peer in present() if options.only is None or peer.name in options.only]
    if not peers:
        sys.exit(f"csi.py: none of {', '.join(sorted({peer.program for peer in PEERS}))} in {search_path()}")
    plan = QUICK if options.quick else Plan()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    root = Path(tempfile.mkdtemp(prefix="volkit-bench-", dir=options.dir)).resolve()
    try:
        figures = run(peers, plan, _homes(root), options.csiload or build_csiload(root))
    finally:
        sweep(root)
    subject = peers[0].name
    reached = targets(figures, plan, subject)
    print("\n".join(f"{key}: {value}" for key, value in machine().items()))
    print("\n".join([*report(figures, peers, plan), *verdicts(reached, subject)]))
    for heading, lines in (("Notes", figures.notes), ("FAILED", figures.failures)):
        print("".join(f"\n{heading}: {line}" for line in lines))
    if options.json:
        document = {
            "machine": machine(),
            "drivers": [peer.name for peer in peers],
            "plan": asdict(plan),
            "figures": figures.rounds,
            "targets": [{**asdict(target), "verdict": target.verdict} for target in reached],
            "notes": figures.notes,
            "failures": figures.failures,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    missed = options.strict and any(target.verdict != "met" for target in reached)
    return 1 if figures.failures or missed else 0


def _homes(root: Path) -> Path:
    homes = root / "d"
    homes.mkdir()
    return homes


if __name__ == "__main__":
    sys.exit(main())
