"""The controller's side of the engine: to which nodes volumes are attached."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs

from volkit import model, requests, validate
from volkit.backend import Limits
from volkit.errors import Aborted, AlreadyExists, Ambiguous, InUse, NotFound, VolkitError
from volkit.guard import call_backend
from volkit.interfaces import Controller, ListsPublished, Publishes
from volkit.journal import Delete, Journal, Put, key
from volkit.journal.records import parts, quarantined
from volkit.making import TAKE_BACK_SECONDS, Making
from volkit.model import Volume
from volkit.node_ids import decode_node_id

_log = logging.getLogger("volkit.engine")


class _Late(Aborted):
    """The lock was lost before it was recorded that the volume is attached."""


class Attaching:
    """One method per operation of the table that attaches, each `(request, call)`."""

    def __init__(
        self,
        controller: Controller[Any, Any],
        limits: Limits,
        journal: Journal,
        volumes: Making[Volume],
    ) -> None:
        self._controller: Any = (
            controller  # Any: a capability's method is there when its operation is (see operations)
        )
        self._limits = limits
        self._journal = journal
        self._volumes = volumes

    def controller_publish(
        self, request: requests.ControllerPublishRequest, call: requests.Call
    ) -> requests.ControllerPublishResult:
        validate.check_id(request.volume_id)
        validate.check_id(request.node_id, "node_id")
        node_id, facts = decode_node_id(request.node_id)
        try:
            with self._volumes.lock_id(request.volume_id, call.patience()):
                return self._attached(request, node_id, facts)
        except _Late as late:
            try:
                self._take_back(request, node_id, facts)
            except VolkitError as error:
                text = "volume %r may be attached to node %r and recorded nowhere: %s"
                _log.warning(text, request.volume_id, node_id, error.message)
            raise Aborted(late.message) from None

    def _attached(
        self, request: requests.ControllerPublishRequest, node_id: str, facts: Mapping[str, str]
    ) -> requests.ControllerPublishResult:
        """Under the volume's lock."""
        volume = self._volumes.look(id=request.volume_id, secrets=request.secrets)
        validate.check_capabilities(
            (request.capability,),
            type(volume),
            modes=self._limits.access_modes,
            fs_types=self._limits.fs_types,
        )
        attach_key = key("attach", request.volume_id, node_id)
        asked = {"node": node_id, "readonly": request.readonly, "capability": request.capability.record()}
        entry = self._journal.get(attach_key)
        since = entry.value.get("since", 0) if entry else time.time()
        record = {**asked, "node_id": request.node_id, "since": since}
        if entry and "context" in entry.value and node_id in self.nodes_of(request.volume_id):
            if any(entry.value[part] != asked[part] for part in asked):
                raise AlreadyExists(
                    f"volume {request.volume_id!r} is attached to node {node_id!r} in another way: detach it first"
                )
            if entry.value != (now := {**record, "context": entry.value["context"]}):
                self._journal.write(Put(attach_key, now), durable=False)
            return requests.ControllerPublishResult(publish_context=entry.value["context"])
        self._refuse_second_node(request, node_id)
        self._journal.write(Put(attach_key, record), durable=True)
        try:
            result: requests.ControllerPublishResult = call_backend(
                self._controller.controller_publish,
                attrs.evolve(request, node_id=node_id, node_facts=facts),
                requests.ControllerPublishResult,
            )
        except VolkitError as error:
            if not isinstance(error, Ambiguous):
                self._journal.write(Delete(attach_key), durable=False)
            raise
        done = Put(attach_key, {**record, "context": dict(result.publish_context)})
        try:
            self._journal.write(done, durable=False)
        except Aborted as lost:
            raise _Late(lost.message) from None
        return result

    def _take_back(
        self, request: requests.ControllerPublishRequest, node_id: str, facts: Mapping[str, str]
    ) -> None:
        """Detach what was attached after the lock was lost, where another replica has detached it meanwhile."""
        with self._volumes.lock_id(request.volume_id, TAKE_BACK_SECONDS):
            if self._journal.get(key("attach", request.volume_id, node_id)) is not None:
                return
            self._journal.fence()
            detach = requests.ControllerUnpublishRequest(
                volume_id=request.volume_id, node_id=node_id, node_facts=facts, secrets=request.secrets
            )
            with suppress(NotFound):
                call_backend(self._controller.controller_unpublish, detach, type(None))

    def _refuse_second_node(self, request: requests.ControllerPublishRequest, node_id: str) -> None:
        """A volume for one node is never attached to two, nor one for a single writer to a second writer."""
        others = {node: record for node, record in self.records(request.volume_id).items() if node != node_id}
        if isinstance(self._controller, ListsPublished):
            real = self.listed((request.volume_id,)).get(request.volume_id, ())
            others = {node: others.get(node, {}) for node in real if node != node_id}
        mode = request.capability.access_mode
        for node, other in others.items():
            if not mode.multi_node:
                raise InUse(
                    f"volume {request.volume_id!r} is attached to node {node!r}: detach it there first ({mode.name})"
                )
            writes = not request.readonly and not mode.read_only
            if (
                mode is model.AccessMode.MULTI_NODE_SINGLE_WRITER
                and writes
                and not other.get("readonly", False)
            ):
                raise InUse(
                    f"volume {request.volume_id!r} is written to by node {node!r} already ({mode.name})"
                )

    def controller_unpublish(self, request: requests.ControllerUnpublishRequest, call: requests.Call) -> None:
        validate.check_id(request.volume_id)
        if request.node_id:
            validate.check_id(request.node_id, "node_id")
        node_id, facts = decode_node_id(request.node_id)
        with self._volumes.lock_id(request.volume_id, call.patience()):
            detach = attrs.evolve(request, node_id=node_id, node_facts=facts)
            with suppress(NotFound):
                call_backend(self._controller.controller_unpublish, detach, type(None))
            self.forget(request.volume_id, node_id)

    # -- what is attached where

    def nodes_of(self, volume_id: str) -> tuple[str, ...]:
        """The nodes that a volume is attached to: as the storage tells, else as recorded."""
        if isinstance(self._controller, ListsPublished):
            return self.listed((volume_id,)).get(volume_id, ())
        if not isinstance(self._controller, Publishes):
            return ()
        return tuple(self.records(volume_id))

    def listed(self, volume_ids: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
        request = requests.ListPublishedRequest(volume_ids=volume_ids)
        result: requests.ListPublishedResult = call_backend(
            self._controller.list_published, request, requests.ListPublishedResult
        )
        return result.node_ids

    def wire_ids(self, volume_id: str, nodes: tuple[str, ...]) -> tuple[str, ...]:
        """The ids by which the nodes are known outside, facts and all; a node is its own where that is not recorded."""
        if not nodes:
            return ()
        records = [entry.value for entry in self._journal.scan(key("attach", volume_id, ""))]
        known = {record["node"]: record.get("node_id", record["node"]) for record in records}
        return tuple(known.get(node, node) for node in nodes)

    def records(self, volume_id: str) -> dict[str, Mapping[str, Any]]:
        """The records of attachments by node; {} of one that could not be read: its volume may be attached."""
        prefix = key("attach", volume_id, "")
        found = {entry.value["node"]: entry.value for entry in self._journal.scan(prefix)}
        # after the scan, which moves what it cannot read there
        aside: dict[str, Mapping[str, Any]] = {
            parts(one)[2]: {} for one in quarantined(self._journal, prefix)
        }
        return aside | found

    def forget(self, volume_id: str, node_id: str = "") -> None:
        """Remove the record of one attachment, or of all of the volume's."""
        prefix = key("attach", volume_id, node_id)
        aside = [key("quarantine", one) for one in quarantined(self._journal, prefix)]
        entries = [*(entry.key for entry in self._journal.scan(prefix)), *aside]
        gone = [one for one in entries if not node_id or one in (prefix, key("quarantine", prefix))]
        if gone:
            self._journal.write(*map(Delete, gone), durable=False)
