"""A file system on a block device: made only with permission and proof, else taken as it is; and its mount.

Permission: the volume's context says `firstFormat`. Proof: the device's head and tail were read and nothing on it
has a signature; or an mkfs of ours was cut short on this very device, and what is there is half made: another node
may have begun anew after us, finished, and put data in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from volkit.errors import FailedPrecondition, InUse, NotBlank
from volkit.host import apart, filesystems, mounts
from volkit.host.probe import Probe, State, is_half_made, probe
from volkit.model import FIRST_FORMAT, BlockConnection
from volkit.requests import NodeStageRequest

FORMAT_SECONDS = 600.0
"""How long mkfs may take."""


def ensure_file_system(
    request: NodeStageRequest,
    connection: BlockConnection,
    *,
    fs_types: Sequence[str],
    unfinished: str,
    intend: Callable[[str], None],
) -> str:
    """The type of the file system on the device; it is made now where that is permitted and proven to be harmless.

    `fs_types` are the backend's, the first by default. `unfinished` is the type that a recorded intent names, "" where
    there is none; `intend(fs_type)` makes that record durable, and is called before anything is written.

    Raises NotBlank, FailedPrecondition, Unavailable where the device cannot be read.
    """
    capability, volume, device = request.capability, request.volume_id, connection.device
    found = apart.reach(connection, probe, device, zeroed=connection.zeroed)
    if found.state is State.OTHER:
        what = found.type or "thing of unknown type"
        raise NotBlank(f"volume {volume!r}: {device} holds a {what}: nothing is done to it")
    torn = found.type == unfinished and apart.reach(connection, is_half_made, device, found.type)
    if found.state is State.FILESYSTEM and not torn:
        return _existing(request, device, found)
    if request.volume_context.get(FIRST_FORMAT) != "true":
        raise FailedPrecondition(
            f"volume {volume!r} is blank and volkit did not make it so: if it may be formatted, "
            f'give it the attribute {FIRST_FORMAT}: "true"'
        )
    if capability.access_mode.read_only:
        raise FailedPrecondition(f"volume {volume!r} is blank and wanted read-only: there is nothing to read")
    wanted = capability.fs_type or fs_types[0]
    filesystems.make(
        device,
        wanted,
        zeroed=connection.zeroed and not unfinished,
        over_partial=torn,
        found=found,
        intend=lambda: intend(wanted),
        timeout=FORMAT_SECONDS,
    )
    return wanted


def _existing(request: NodeStageRequest, device: str, found: Probe) -> str:
    wanted = request.capability.fs_type
    if wanted and found.type != wanted:
        raise NotBlank(
            f"volume {request.volume_id!r} holds a file system of type {found.type}, asked for is {wanted}"
        )
    try:
        filesystems.check(device, found.type)
    except InUse:
        if not _lives_elsewhere(device):
            raise
    return found.type


def _lives_elsewhere(device: str) -> bool:
    """Is its file system mounted in another mount namespace, and not in this one: by a container that outlived the
    mount here, or by whoever has a copy of it? Then it needs no check, and mounting it once more shows the same one.
    """
    from volkit.host import namespaces

    number = os.stat(device).st_rdev
    known = (os.major(number), os.minor(number))
    return not mounts.mounts(device=known) and bool(namespaces.users_elsewhere(known))


def mount_device(
    connection: BlockConnection, path: str, fs_type: str, flags: Sequence[str], *, read_only: bool
) -> None:
    """Mount, and let the file system fill a device that has grown: before the mount where its type can, since
    growing a mounted ext4 takes CAP_SYS_RESOURCE. A new one is empty.
    """
    device = connection.device
    offline = filesystems.supported(fs_type).grow_unmounted is not None
    if offline and not read_only:
        filesystems.grow(device, fs_type)
    options = [*flags, *filesystems.mount_options(fs_type, read_only=read_only)]
    apart.reach(connection, mounts.mount, device, path, fs_type, options)
    if not offline and not read_only:
        filesystems.grow(device, fs_type, path)
    if not read_only and fs_type.startswith("ext"):
        apart.reach(connection, filesystems.remove_lost_found, path)
