"""What the operator sets, and what a user chooses."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from volkit import option


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
