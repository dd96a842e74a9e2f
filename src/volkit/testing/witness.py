"""Who looks at the storage without volkit, and what a vendor's factory returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable
from typing import Any

from attrs import frozen

from volkit.interfaces import Lists, ListsSnapshots, Publishes, Snapshots
from volkit.requests import GetVolumeRequest, ListPublishedRequest, ListRequest, ListSnapshotsRequest


class Witness(ABC):
    """Looks at the storage itself: with the vendor's own tool, a second client, or the file system.

    Each method returns one text per thing, whatever names it there: what was made by half is a thing too. Two
    things of one name are two entries, so return a list, not a set of names.
    """

    @abstractmethod
    def volumes(self) -> Collection[str]:
        """Everything that takes room as a volume, or as part of one."""

    def snapshots(self) -> Collection[str]:
        """Every snapshot; to be defined for a backend that has `Snapshots`."""
        return ()

    def attachments(self) -> Collection[Hashable]:
        """Every attachment of a volume to a node, also those that a node makes by itself (a loop device, a
        session).

        To be defined for a backend that has `Publishes`, or whose node leaves something behind when it fails.
        """
        return ()

    def capacity(self, volume_id: str) -> int | None:
        """The bytes that the volume really has, or None where that cannot be told."""
        return None


@frozen(kw_only=True)
class Storage:
    """What the suite works on: the operator's settings, and a witness.

    `outlives` says that the storage is still there after its process is killed; False only for one that is in
    this process's memory. There a kill is an exception that nothing catches; elsewhere it is SIGKILL.

    `reboot` does to this node what a power cut does to it, save for its mounts: its devices and its sessions with
    the storage are gone. Of what it made in `storage`'s directory nothing may be lost that is synced.
    """

    settings: object
    witness: Witness
    outlives: bool = True
    reboot: Callable[[], object] = lambda: None


class OwnListing(Witness):
    """The backend's own listing, asked without the engine: for a backend without a witness.

    It sees what the backend is willing to show: a leak that the backend hides stays hidden.
    """

    def __init__(self, controller: Any) -> None:
        if not isinstance(controller, Lists):
            raise TypeError(f"{type(controller).__name__} lists no volumes: give a witness")
        self._controller: Any = controller

    def _all(self, method: Any, request: type[ListRequest]) -> list[Any]:
        found: list[Any] = []
        token = ""
        while True:
            page = method(request(token=token))
            found += page.entries
            token = page.next_token
            if not token:
                return found

    def volumes(self) -> list[str]:
        return [one.id for one in self._all(self._controller.list_volumes, ListRequest)]

    def snapshots(self) -> list[str]:
        if not isinstance(self._controller, ListsSnapshots):
            return []
        return [one.id for one in self._all(self._controller.list_snapshots, ListSnapshotsRequest)]

    def attachments(self) -> list[Hashable]:
        if not hasattr(self._controller, "list_published"):
            return []
        request = ListPublishedRequest(volume_ids=tuple(self.volumes()))
        nodes = self._controller.list_published(request).node_ids
        return [(volume, node) for volume, several in nodes.items() for node in several]

    def capacity(self, volume_id: str) -> int | None:
        return int(self._controller.get_volume(GetVolumeRequest(volume_id=volume_id)).capacity)


def required_of(controller: type | None) -> tuple[str, ...]:
    """The methods that a witness of such a backend has to define."""
    if controller is None:
        return ()
    wanted = {"snapshots": Snapshots, "attachments": Publishes}
    return tuple(name for name, mixin in wanted.items() if issubclass(controller, mixin))
