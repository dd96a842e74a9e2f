"""The loop backend: its classes and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volkit import AccessMode, Backend, Limits, Needs
from volkit_loop.controller import LoopController
from volkit_loop.node import LoopNode
from volkit_loop.options import LoopParameters, LoopSettings

if TYPE_CHECKING:
    from typing import Any, ClassVar

    from volkit import Controller, Node
    from volkit.testing import Witness


class LoopBackend(Backend[LoopSettings, LoopParameters]):
    """Block volumes as image files in a directory of this node, attached as loop devices."""

    name = "loop"
    settings = LoopSettings
    parameters = LoopParameters
    controller: ClassVar[type[Controller[Any, Any]] | None] = LoopController
    node: ClassVar[type[Node[Any]] | None] = LoopNode
    limits: ClassVar[Limits] = Limits(
        min_size=1 << 20,
        granularity=4096,  # a whole page, so that direct I/O reaches the last byte
        access_modes=frozenset(mode for mode in AccessMode if not mode.multi_node),
    )
    needs: ClassVar[Needs] = Needs(node_local=True, host_paths=("pool",))

    @classmethod
    def witness(cls, settings: LoopSettings) -> Witness:
        from volkit_loop.witness import Images

        return Images(settings.pool)
