"""The names, the options and the limits of the loop backend."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen
from volkit import AccessMode, Backend, Limits, option

from volkit_loop.controller import LoopController
from volkit_loop.node import LoopNode
from volkit_loop.settings import LoopSettings


@frozen
class LoopParameters:
    """What a user chooses for one volume."""

    preallocate: bool = option(
        default=False, help="take the volume's space when it is made, instead of when it is written"
    )


class LoopBackend(Backend[LoopSettings, LoopParameters]):
    """Block volumes as image files in a directory of this node, attached as loop devices."""

    name = "loop"
    settings = LoopSettings
    parameters = LoopParameters
    controller = LoopController
    node = LoopNode
    limits = Limits(
        min_size=1 << 20,
        granularity=4096,  # a whole page, so that direct I/O reaches the last byte
        access_modes=frozenset(mode for mode in AccessMode if not mode.multi_node),
    )
