"""What the operator sets, what a user chooses, and the place where a pool's volumes can be used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from attrs import frozen

from volkit import Topology, option

NODE: Final = "volkit.io/node"


@frozen
class LoopSettings:
    """`-o pool=DIR` and the rest."""

    pool: Path = option(help="directory of the images, on ext4, xfs, btrfs or tmpfs")
    overcommit: float = option(
        default=1.0, at_least=1, at_most=1000, help="bytes promised to volumes for each byte that is free"
    )
    direct_io: bool = option(
        default=True, help="bypass the page cache of the pool's file system where it allows that"
    )
    freeze_limit: float = option(
        default=30.0, at_least=0.1, help="seconds that writes to a mounted volume may wait while it is copied"
    )


@frozen
class LoopParameters:
    """What a user chooses for one volume."""

    preallocate: bool = option(
        default=False, help="take the volume's space when it is made, instead of when it is written"
    )


def topology(node_id: str) -> tuple[Topology, ...]:
    """The one place a pool's volumes can be used from; none where the node has no name.

    A segment's value has at most 63 characters (CSI spec, Topology): a longer name ends in its hash.
    """
    if not node_id:
        return ()
    value = node_id
    if len(value) > 63:
        value = f"{node_id[:46]}-{hashlib.sha256(node_id.encode()).hexdigest()[:16]}"
    return (Topology({NODE: value}),)
