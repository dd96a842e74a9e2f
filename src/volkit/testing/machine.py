"""Random sequences of calls, legal and illegal, out of the lifecycle's table, beside an oracle: the memory backend.

Each step is one operation of the table on one of a few volumes, snapshots, nodes and targets; or an earlier request
once more, however late; or the end of the process that serves. After each the backend has to answer as the oracle
does, and a witness has to see as many volumes and snapshots; in the end nothing may be left. A sequence that fails is
made as short as it goes (Hypothesis), and printed as CSI calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from volkit.interfaces import Clones, Snapshots
from volkit.operations import State
from volkit.testing.kit import Fault, Kit
from volkit.testing.pair import MODES, PODS, SNAPSHOTS, VOLUMES, Pair


def random_sequences(kit: Kit, *, examples: int, steps: int = 20) -> None:
    """Try `examples` sequences of at most `steps` calls. Raises a Fault with a short script."""
    scripts: list[str] = []

    class Machine(_Machine):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair(kit.another())

        def teardown(self) -> None:
            try:
                self.pair.end()
            except Fault as fault:
                self.fail(fault)
            finally:
                self.pair.kit.close(judge=False)

        def fail(self, fault: Fault) -> None:
            scripts.append("\n".join([*(f"  {line}" for line in self.pair.script), f"  {fault}"]))
            raise fault

    for name in Pair(kit).operations():
        setattr(Machine, name, _rule(name, kit))
    for name, end in (("up", State.PUBLISHED), ("down", State.ABSENT)):
        setattr(Machine, name, _way(end, kit))
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=not kit.sequences,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        print_blob=False,
        report_multiple_bugs=False,
    )
    try:
        run_state_machine_as_test(Machine, settings=profile)
    except Fault:
        raise Fault(f"these calls show it:\n{scripts[-1]}") from None


class _Machine(RuleBasedStateMachine):
    """What every machine has, whatever its backend can do."""

    pair: Pair

    def __init__(self) -> None:
        super().__init__()

    def fail(self, fault: Fault) -> None:
        """Raise it, with the script that led to it."""
        raise fault

    def guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Fault as fault:
            self.fail(fault)

    @rule(number=st.integers(0, 30))
    def again(self, number: int) -> None:
        self.guarded(lambda: self.pair.again(number))

    @rule()
    def restart(self) -> None:
        self.guarded(self.pair.restart)

    @invariant()
    def compare(self) -> None:
        self.guarded(self.pair.compare)


def _rule(operation: str, kit: Kit) -> Any:
    strategies = {name: made(kit) for name, made in _DRAWN[operation].items()}

    def step(self: _Machine, **draw: Any) -> None:
        self.guarded(lambda: self.pair.step(operation, draw))

    step.__name__ = operation
    made: Any = rule(**strategies)
    return made(step)


def _way(end: State, kit: Kit) -> Any:
    """Some operations of the plan that leads a volume to `end`, so that not all is illegal."""
    drawn: dict[str, Callable[[Kit], Any]] = {**_V, **_Z, **_P, **_R, "steps": lambda kit: st.integers(1, 4)}
    made: Any = rule(**{name: strategy(kit) for name, strategy in drawn.items()})
    modes = [mode for mode in MODES if mode in kit.backend.limits.access_modes] or list(MODES[:1])

    def step(self: Any, volume: str, steps: int, **draw: Any) -> None:
        mode = modes[VOLUMES.index(volume) % len(modes)]
        fixed = {"volume": volume, "mode": mode, "how": "new", "from": volume, "node": 0, **draw}
        for name in self.pair.way(volume, end)[:steps]:
            chosen = {one: fixed[one] for one in ("volume", *_DRAWN[name]) if one in fixed}
            self.guarded(functools.partial(self.pair.step, name, chosen))

    return made(step)


def _size(kit: Kit) -> Any:
    limits = kit.backend.limits
    first = kit.suite.size or max(limits.min_size, min(limits.default_size, limits.granularity))
    return st.sampled_from([first, first + limits.granularity])


def _how(kit: Kit) -> Any:
    ways = [way for way, mixin in (("clone", Clones), ("restore", Snapshots)) if kit.has(mixin)]
    return st.sampled_from(["new", "new", *ways])


def _modes(kit: Kit) -> Any:
    return st.sampled_from(
        [mode for mode in MODES if mode in kit.backend.limits.access_modes] or list(MODES[:1])
    )


_V: Final[Mapping[str, Callable[[Kit], Any]]] = {"volume": lambda kit: st.sampled_from(VOLUMES)}
_S: Final[Mapping[str, Callable[[Kit], Any]]] = {"snapshot": lambda kit: st.sampled_from(SNAPSHOTS)}
_P: Final[Mapping[str, Callable[[Kit], Any]]] = {"pod": lambda kit: st.sampled_from(PODS)}
_R: Final[Mapping[str, Callable[[Kit], Any]]] = {"readonly": lambda kit: st.booleans()}
_N: Final[Mapping[str, Callable[[Kit], Any]]] = {"node": lambda kit: st.sampled_from((0, 1))}
_M: Final[Mapping[str, Callable[[Kit], Any]]] = {"mode": _modes}
_Z: Final[Mapping[str, Callable[[Kit], Any]]] = {"size": _size}

_DRAWN: Final[Mapping[str, Mapping[str, Callable[[Kit], Any]]]] = {
    "create_volume": {
        **_V, **_M, **_Z, "how": _how,
        "from": lambda kit: st.sampled_from((*VOLUMES, *SNAPSHOTS)),
    },
    "delete_volume": _V,
    "get_volume": _V,
    "validate_capabilities": {**_V, **_M},
    "controller_publish": {**_V, **_N, **_M, **_R},
    "controller_unpublish": {**_V, **_N},
    "list_volumes": {},
    "expand_volume": {**_V, **_Z},
    "create_snapshot": {**_V, **_S},
    "delete_snapshot": _S,
    "get_snapshot": _S,
    "list_snapshots": _V,
    "node_stage": {**_V, **_M},
    "node_unstage": _V,
    "node_publish": {**_V, **_P, **_M, **_R},
    "node_unpublish": {**_V, **_P},
    "node_stats": {**_V, **_P},
}  # fmt: skip
"""What is drawn for each operation."""
