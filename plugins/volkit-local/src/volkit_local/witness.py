"""Who looks at a pool without the backend: at its directories."""

from __future__ import annotations

import json
from pathlib import Path

from volkit.testing import Witness


class Trees(Witness):
    """What is in the pool's directory, whole or by half."""

    def __init__(self, pool: Path) -> None:
        self.pool = pool

    def volumes(self) -> list[str]:
        whole = [path.name for path in self.pool.glob("volumes/*/*")]
        return whole + [str(path) for glob in ("scratch/*/*", "trash/*") for path in self.pool.glob(glob)]

    def snapshots(self) -> list[str]:
        return [path.name for path in self.pool.glob("snapshots/*/*")]

    def capacity(self, volume_id: str) -> int | None:
        for record in self.pool.glob(f"volumes/*/{volume_id}/record"):
            return json.loads(record.read_text())["size"] or None
        return None
