"""The local backend: its classes and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volkit import AccessMode, Backend, FileVolume, Limits, Needs
from volkit_local.controller import LocalController
from volkit_local.node import LocalNode
from volkit_local.options import LocalParameters, LocalSettings

if TYPE_CHECKING:
    from typing import Any, ClassVar

    from volkit import Controller, Node, Volume
    from volkit.testing import Witness


class LocalBackend(Backend[LocalSettings, LocalParameters]):
    """File volumes as directories of this node, with quotas and snapshots where its file system has them."""

    name = "local"
    settings = LocalSettings
    parameters = LocalParameters
    controller: ClassVar[type[Controller[Any, Any]] | None] = LocalController
    node: ClassVar[type[Node[Any]] | None] = LocalNode
    volume: ClassVar[type[Volume]] = FileVolume
    limits: ClassVar[Limits] = Limits(
        min_size=1 << 20,
        granularity=4096,
        access_modes=frozenset(mode for mode in AccessMode if not mode.multi_node),
        mount_flags=frozenset({"ro", "rw", "nosuid", "nodev", "noexec", "noatime", "relatime", "nodiratime"}),
    )
    needs: ClassVar[Needs] = Needs(node_local=True, host_paths=("pool",))

    @classmethod
    def witness(cls, settings: LocalSettings) -> Witness:
        from volkit_local.witness import Trees

        return Trees(settings.pool)
