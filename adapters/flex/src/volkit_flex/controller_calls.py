"""What the controller manager calls: attach and detach, and what belongs to them."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import volkit
from volkit import FailedPrecondition, NotFound
from volkit_flex import records, token
from volkit_flex.token import Attachment

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from volkit import Call, Engine
    from volkit_flex.options import Options
    from volkit_flex.volumes import Volumes
    from volkit_flex.wire import Answer, Callout

_log = logging.getLogger("volkit.flex")


class ControllerCalls:
    """Each call a method that gives its answer."""

    def __init__(self, volumes: Volumes) -> None:
        self.volumes = volumes
        self.engine: Engine = volumes.engine
        self.records: records.Records = volumes.controller_records

    def attach(self, call: Callout, limits: Call) -> Answer:
        options = self.volumes.options(call)
        old = self.records.get(records.PV, options.name)
        if not old:  # what was begun for this PV is known, also where there is no volume yet
            self.records.put(records.PV, options.name, volume=options.volume, nodes=[])
        volume_id, context = self.volumes.resolve(options, limits)
        nodes = sorted({*self._nodes(old, volume_id, options, limits), call.node})
        self.records.put(records.PV, options.name, volume=volume_id, nodes=nodes)
        published = self.volumes.attach(volume_id, context, call.node, options, limits)
        return {"device": token.encode(Attachment(volume_id, options.volume, published, context))}

    def _nodes(
        self, old: Mapping[str, Any], volume_id: str, options: Options, limits: Call
    ) -> tuple[str, ...]:
        """Where the PV's volume is attached already. Raises FailedPrecondition where that is another volume: detach is
        told only the PV's name.
        """
        nodes = tuple(old.get("nodes", ()))
        if not nodes or old["volume"] == volume_id:
            return nodes
        if not self.volumes.id_of(old["volume"], limits, options.secrets):
            return ()
        raise FailedPrecondition(
            f"{options.name!r} is still attached to {', '.join(nodes)} as volume {old['volume']!r}, and not as "
            f"{volume_id!r}: end its pods there first"
        )

    def isattached(self, call: Callout, limits: Call) -> Answer:
        options = self.volumes.options(call)
        record = self.records.get(records.PV, options.name)
        volume_id = str(record.get("volume", "")) or self.volumes.id_of(
            options.volume, limits, options.secrets
        )
        if not volume_id:
            return {"attached": False}
        if self.volumes.publishes and self.engine.provisioning is not None:
            nodes = self.engine.provisioning.attaching.nodes_of(volume_id)
            return {"attached": call.node in nodes}
        return {"attached": call.node in record.get("nodes", ())}

    def detach(self, call: Callout, limits: Call) -> Answer:
        record = self.records.get(records.PV, call.name)
        volume_id = str(record.get("volume", "")) or self.volumes.id_of(call.name, limits)
        if not volume_id:
            _log.warning(
                "detach of %r: no volume is known by that name, so there is nothing to detach", call.name
            )
            return {}
        if self.volumes.publishes:
            request = volkit.ControllerUnpublishRequest(
                volume_id=volume_id, node_id=self.volumes.node_id(call.node)
            )
            with suppress(NotFound):
                self.engine.run("controller_unpublish", request, limits)
        left = [node for node in record.get("nodes", ()) if node != call.node]
        if left:
            self.records.put(records.PV, call.name, volume=volume_id, nodes=left)
        else:
            self.records.forget(records.PV, call.name)
        return {}

    def expandvolume(self, call: Callout, limits: Call) -> Answer:
        volume_id = self.volumes.of_call(call, limits)
        return {"volumeNewSize": self.volumes.grow(volume_id, call, limits)}
