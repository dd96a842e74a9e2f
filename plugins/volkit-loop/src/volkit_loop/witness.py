"""Who looks at a pool without the backend: at its files, and at the loop devices of this host."""

from __future__ import annotations

import os
from pathlib import Path

from volkit.host import loop
from volkit.testing import Witness


class Images(Witness):
    """What is in the pool's directory, and what is attached from there."""

    def __init__(self, pool: Path) -> None:
        self.pool = pool

    def _files(self, directory: str) -> list[Path]:
        return [path for path in (self.pool / directory).rglob("*") if path.is_file()]

    def volumes(self) -> list[str]:
        return [path.stem for path in self._files("volumes")]

    def snapshots(self) -> list[str]:
        return [path.stem for path in self._files("snapshots")]

    def attachments(self) -> list[str]:
        return list(self._attached().values())

    def detach(self) -> None:
        """Detach them all, as a reboot does."""
        for device in self._attached():
            loop.detach(device)

    def _attached(self) -> dict[str, str]:
        """The image of each loop device."""
        found = {}
        for attribute in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                image = attribute.read_text().strip()
            except OSError:  # detached meanwhile
                continue
            if image.startswith(f"{self.pool}/"):
                found[f"/dev/{attribute.parts[3]}"] = image
        return found

    def capacity(self, volume_id: str) -> int | None:
        sizes = [os.stat(path).st_size for path in self._files("volumes") if path.stem == volume_id]
        return sizes[0] if sizes else None
