"""Carries a volume along the lifecycle in one go, for platforms that know only "use it" and "use it no more".

```python
up(engine, volume, target="/mnt/a", staging="/run/staging/a", capability=Capability(), call=Call(deadline=…))
down(engine, volume.id, target="/mnt/a", staging="/run/staging/a", call=Call())
```
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from volkit import requests as r
from volkit.engine import Engine
from volkit.errors import NotFound
from volkit.host import paths
from volkit.lifecycle import plan
from volkit.model import EMPTY, NO_SECRETS, Capability, Secrets
from volkit.operations import State


def steps(engine: Engine, start: State, end: State) -> tuple[str, ...]:
    """The operations of this engine that lead from one state to another."""
    return tuple(one.name for one in plan(start, end, tuple(engine.operations.values())))


def up(
    engine: Engine,
    volume_id: str,
    *,
    target: str,
    staging: str,
    capability: Capability,
    readonly: bool = False,
    volume_context: Mapping[str, str] = EMPTY,
    secrets: Secrets = NO_SECRETS,
    metadata: Mapping[str, str] = EMPTY,
    call: r.Call,
) -> None:
    """From CREATED to PUBLISHED at `target`. To repeat it is safe, and finishes what was cut short.

    The parents of both paths are made where they are missing: the staging path's for root alone.
    """
    common: dict[str, Any] = {
        "volume_id": volume_id,
        "capability": capability,
        "volume_context": volume_context,
        "secrets": secrets,
    }
    for step in steps(engine, State.CREATED, State.PUBLISHED):
        if step == "controller_publish":
            node = engine.run("node_info", r.NodeInfoRequest(), call).node_id
            request: Any = r.ControllerPublishRequest(node_id=node, readonly=readonly, **common)
            common["publish_context"] = engine.run(step, request, call).publish_context
            continue
        if step == "node_stage":
            os.makedirs(staging, mode=0o700, exist_ok=True)
            request = r.NodeStageRequest(staging_target_path=staging, **common)
        else:
            os.makedirs(os.path.dirname(target), mode=0o711, exist_ok=True)
            staged = staging if "node_stage" in engine.operations else ""
            request = r.NodePublishRequest(
                target_path=target, staging_target_path=staged, readonly=readonly, metadata=metadata, **common
            )
        engine.run(step, request, call)


def down(
    engine: Engine, volume_id: str, *, target: str, staging: str, keep_target: bool = False, call: r.Call
) -> None:
    """From PUBLISHED at `target` to CREATED. What is undone already, or gone, is success. The target itself goes last,
    unless it is to be kept: while it is there, not all is undone. Raises InUse where the volume is published at another
    target too, or held by somebody else, after it was unpublished from this one.
    """
    for step in steps(engine, State.PUBLISHED, State.CREATED):
        if step == "node_unpublish":
            request: Any = r.NodeUnpublishRequest(volume_id=volume_id, target_path=target, keep_target=True)
        elif step == "node_unstage":
            request = r.NodeUnstageRequest(volume_id=volume_id, staging_target_path=staging)
        else:
            node = engine.run("node_info", r.NodeInfoRequest(), call).node_id
            request = r.ControllerUnpublishRequest(volume_id=volume_id, node_id=node)
        with suppress(NotFound):
            engine.run(step, request, call)
    with suppress(OSError):
        os.rmdir(staging)
    if not keep_target:
        paths.remove_target(target)
