"""What the operator sets, and what a user chooses."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from volkit import Mode, option


@frozen
class LocalSettings:
    """`-o pool=DIR` and the rest."""

    pool: Path = option(help="directory of the volumes, with nothing else in it; it must exist")
    quota: bool = option(
        default=True, help="enforce sizes where the file system can; quotas of a btrfs are enabled for it"
    )
    overcommit: float = option(
        default=1.0, at_least=1, at_most=1000, help="bytes promised to volumes for each byte that is free"
    )


@frozen
class LocalParameters:
    """What a user chooses for one volume."""

    advisory_size: bool = option(
        default=False, help="accept a size that nothing enforces, where the pool's file system cannot"
    )
    mode: Mode = option(default="0755", help="permissions of a new volume's directory, octal")
