"""The local backend: its classes and its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volkit import AccessMode, Backend, FileVolume, Limits
from volkit.host import files
from volkit_local.controller import Copied, Directories, Sized, SizedAndCopied
from volkit_local.node import LocalNode
from volkit_local.options import LocalParameters, LocalSettings
from volkit_local.pool import find_quota

if TYPE_CHECKING:
    from volkit.testing import Witness


class LocalBackend(Backend[LocalSettings, LocalParameters]):
    """File volumes as directories of this node, with quotas and snapshots where its file system has them."""

    name = "local"
    settings = LocalSettings
    parameters = LocalParameters
    controller = Directories
    node = LocalNode
    volume = FileVolume
    limits = Limits(
        min_size=1 << 20,
        granularity=4096,
        access_modes=frozenset(mode for mode in AccessMode if not mode.multi_node),
        mount_flags=frozenset({"ro", "rw", "nosuid", "nodev", "noexec", "noatime", "relatime", "nodiratime"}),
    )

    @classmethod
    def controller_class(cls, settings: LocalSettings) -> type[Directories]:
        """By what the pool's file system can do, found out by looking."""
        sized = find_quota(settings) is not None
        if files.has_reflinks(str(settings.pool)):
            return SizedAndCopied if sized else Copied
        return Sized if sized else Directories

    @classmethod
    def witness(cls, settings: LocalSettings) -> Witness:
        from volkit_local.witness import Trees

        return Trees(settings.pool)
