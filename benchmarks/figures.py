"""What csi.py measures: how much of it, the figures, their tables, and the targets they are held to."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from drivers import REFERENCE, LoadError, Peer

RPCS = (
    "CreateVolume",
    "NodeStageVolume",
    "NodePublishVolume",
    "NodeUnpublishVolume",
    "NodeUnstageVolume",
    "DeleteVolume",
)
CELLS = tuple((mode, callers) for mode in ("mount", "block") for callers in (1, 16))


@dataclass(frozen=True)
class Plan:
    """How much is measured. `give_up` bounds one fill, in seconds; what a slower peer reached is noted."""

    rounds: int = 3
    lifecycles: tuple[int, int] = (200, 480)  # with 1 and with 16 callers
    probe_seconds: int = 3
    starts: int = 10
    memory_at: int = 1_000
    sizes: tuple[int, ...] = (100, 10_000, 100_000)
    samples: int = 100
    give_up: int = 300
    mounts: tuple[int, int] = (10, 5_000)
    publishes: int = 200


QUICK = Plan(1, (20, 48), 1, 3, 100, (100, 1_000), 20, 20, (10, 500), 30)


@dataclass
class Figures:
    """Every figure of every round, by peer and name; a name is a path, as mount/16/NodeStageVolume/p50_us."""

    rounds: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, peer: Peer, name: str, value: float) -> None:
        self.rounds[peer.name][name].append(value)

    def quantiles(self, peer: Peer, name: str, values: dict[str, float]) -> None:
        for key in ("p50_us", "p99_us"):
            self.add(peer, f"{name}/{key}", values[key])

    def get(self, peer: str, name: str) -> float | None:
        values = self.rounds[peer].get(name)
        return statistics.median(values) if values else None

    @contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """A driver that fails one measurement goes on to the next; the run then ends with status 1."""
        try:
            yield
        except LoadError as error:
            self.failures.append(f"{what}: {error}")
            print(f"FAILED {what}: {error}", file=sys.stderr)


def _number(value: float | None, unit: float = 1) -> str:
    if value is None:
        return "–"
    value /= unit
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _callers(count: int) -> str:
    return "1 caller" if count == 1 else f"{count} callers"


def _table(title: str, columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"\n**{title}**\n", f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def report(figures: Figures, peers: list[Peer], plan: Plan) -> list[str]:
    def get(peer: Peer, name: str, unit: float = 1) -> str:
        return _number(figures.get(peer.name, name), unit)

    def pair(peer: Peer, name: str, unit: float = 1) -> str:
        return f"{get(peer, f'{name}/p50_us', unit)} / {get(peer, f'{name}/p99_us', unit)}"

    once, names = [peer for peer in peers if not peer.variant], [peer.name for peer in peers]
    lines = _table(
        "Lifecycles, volumes/s",
        ["driver", *(f"{mode}, {_callers(callers)}" for mode, callers in CELLS)],
        [[peer.name, *(get(peer, f"{mode}/{callers}/per_s") for mode, callers in CELLS)] for peer in peers],
    )
    for mode, callers in CELLS:
        rows = [[rpc, *(pair(peer, f"{mode}/{callers}/{rpc}", 1e3) for peer in peers)] for rpc in RPCS]
        lines += _table(f"{mode}, {_callers(callers)}: p50 / p99 per RPC, ms", ["RPC", *names], rows)
    at = plan.memory_at
    lines += _table(
        "The server",
        [
            "driver",
            "RPC p50 / p99, µs",
            "RPCs/s, 32 callers",
            "RSS idle, MB",
            f"RSS, {at:,} volumes, MB",
            "start to Probe p50, ms",
            "SIGTERM to end, ms",
        ],
        [
            [
                *(
                    peer.name,
                    pair(peer, "raw"),
                    get(peer, "raw/per_s"),
                    get(peer, "rss/idle"),
                    get(peer, f"rss/{at}"),
                ),
                *(get(peer, "start/p50_us", 1e3), get(peer, "stop/p50_us", 1e3)),
            ]
            for peer in once
        ],
    )
    growing = [(size, rpc) for size in plan.sizes for rpc in ("CreateVolume", "DeleteVolume", "page")]
    rows = [
        [f"{rpc} at {size:,}", *(pair(peer, f"size/{size}/{rpc}", 1e3) for peer in once)]
        for size, rpc in growing
    ]
    lines += _table(
        "By number of volumes: p50 / p99, ms; a page is 500 entries",
        ["", *(peer.name for peer in once)],
        rows,
    )
    present_mounts = [
        (count, rpc) for rpc in ("NodePublishVolume", "NodeUnpublishVolume") for count in plan.mounts
    ]
    rows = [
        [f"{rpc}, {count:,} mounts", *(pair(peer, f"mounts/{count}/{rpc}", 1e3) for peer in peers)]
        for count, rpc in present_mounts
    ]
    return lines + _table("By number of unrelated mounts: p50 / p99, ms", ["", *names], rows)


@dataclass(frozen=True)
class Target:
    """`value` is what was measured, None where it was not; met when it is on the right side of the bound."""

    claim: str
    value: float | None
    bound: float
    at_least: bool = False

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        met = self.value >= self.bound if self.at_least else self.value <= self.bound
        return "met" if met else "MISSED"


def targets(figures: Figures, plan: Plan, subject: str) -> list[Target]:
    """The project's speed targets, for one driver."""

    def own(name: str, unit: float = 1) -> float | None:
        value = figures.get(subject, name)
        return None if value is None else value / unit

    def ratio(above: float | None, below: float | None) -> float | None:
        return None if above is None or not below else above / below

    def against(cell: str) -> float | None:
        return ratio(own(f"{cell}/per_s"), figures.get(REFERENCE, f"{cell}/per_s"))

    few, many = plan.mounts
    small, large = plan.sizes[0], plan.sizes[-1]
    grown = ratio(own(f"size/{large}/CreateVolume/p50_us"), own(f"size/{small}/CreateVolume/p50_us"))

    def beside_mounts(rpc: str) -> float | None:
        return ratio(own(f"mounts/{many}/{rpc}/p50_us"), own(f"mounts/{few}/{rpc}/p50_us"))

    return [
        Target(f"block volumes/s, 1 caller, times {REFERENCE}'s", against("block/1"), 3, at_least=True),
        Target(f"block volumes/s, 16 callers, times {REFERENCE}'s", against("block/16"), 3, at_least=True),
        Target(f"mount volumes/s, 1 caller, times {REFERENCE}'s", against("mount/1"), 1, at_least=True),
        Target(f"mount volumes/s, 16 callers, times {REFERENCE}'s", against("mount/16"), 2, at_least=True),
        Target("NodePublish p50, 1 caller, mount, ms", own("mount/1/NodePublishVolume/p50_us", 1e3), 1),
        Target("NodePublish p50, 1 caller, block, ms", own("block/1/NodePublishVolume/p50_us", 1e3), 1),
        Target(
            f"NodePublish p50, {many:,} mounts, times that with {few}",
            beside_mounts("NodePublishVolume"),
            1.3,
        ),
        Target(
            f"NodeUnpublish p50, {many:,} mounts, times that with {few}",
            beside_mounts("NodeUnpublishVolume"),
            1.3,
        ),
        Target(f"CreateVolume p50 at {large:,} volumes, times that at {small}", grown, 1.5),
        Target(
            f"ListVolumes page of 500 at {large:,} volumes, p50, ms",
            own(f"size/{large}/page/p50_us", 1e3),
            25,
        ),
        Target("RSS idle, MB", own("rss/idle"), 48),
        Target("start to first Probe, p50, ms", own("start/p50_us", 1e3), 250),
    ]


def verdicts(all_targets: list[Target], subject: str) -> list[str]:
    rows = [
        [t.claim, _number(t.value), f"{'≥' if t.at_least else '≤'} {t.bound:g}", t.verdict]
        for t in all_targets
    ]
    return _table(f"Targets, {subject}", ["", "measured", "target", "verdict"], rows)
