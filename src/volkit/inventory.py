"""Every volume: how far it has come, how large and how full it is, where it is attached, and who uses it.

Told from the storage, from the journals, and from what is really mounted. Who uses a volume is recorded where the
platform says so (a pod's name), and seen in the kernel's tables: kubelet's directories tell a pod's uid, and a
container's mount namespace has the volume's file system in it, whatever anybody recorded. Nothing that hangs is waited
for.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field, frozen

from volkit import requests as r
from volkit.doctor.node import Places, Table
from volkit.engine import Engine
from volkit.errors import VolkitError
from volkit.host import mounts
from volkit.host.mounts import Mount
from volkit.journal import key
from volkit.journal.records import parts
from volkit.recovery import described

STATES: Final = ("created", "attached", "staged", "published")

STORAGE_SECONDS: Final = 15.0
"""How long the storage is waited for."""

USAGE_SECONDS: Final = 5.0
"""How long a volume is waited for that is asked how full it is."""

POD_LOGS: Final = "/var/log/pods"

_PAGE: Final = 1000
_AT_ONCE: Final = 8
_UID: Final = re.compile(r"/pods/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/")
_CONTAINER: Final = re.compile(r"(?<![0-9a-f])([0-9a-f]{64})(?![0-9a-f])")
_CGROUP_POD: Final = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")


@frozen(kw_only=True)
class User:
    """Who uses a volume: a `pod` (by name and namespace where they are recorded, else by uid) or a `container` (by its
    id; with the uid of its pod where it has one). `path` is where the volume was published for it, "" for a container.
    """

    kind: str
    name: str = ""
    namespace: str = ""
    uid: str = ""
    id: str = ""
    path: str = ""

    @property
    def shown(self) -> str:
        """A short name for people."""
        if self.kind == "container":
            return f"container {self.id[:12]}"
        return f"{self.namespace}/{self.name}" if self.name else f"pod {self.uid}"


@define(kw_only=True)
class Item:
    """One volume. `size` and `used` are bytes, None where nobody told; `attached` are nodes; `staged` and `published`
    the paths on this node where it really is; `unfinished` what has begun and not ended; `holders` how many users a
    platform counts that only begins and ends (Docker).
    """

    id: str
    name: str = ""
    size: int | None = None
    used: int | None = None
    attached: list[str] = field(factory=list)
    staged: str = ""
    published: list[str] = field(factory=list)
    users: list[User] = field(factory=list)
    holders: int = 0
    unfinished: list[str] = field(factory=list)

    @property
    def state(self) -> str:
        """The last of `STATES` that it has come to."""
        reached = (True, bool(self.attached), bool(self.staged), bool(self.published))
        return next(name for name, there in reversed(list(zip(STATES, reached, strict=True))) if there)


@frozen(kw_only=True)
class Inventory:
    """The volumes in the order of their names, of the node `node`; `notes` say what could not be looked at, and why."""

    node: str
    volumes: list[Item]
    notes: list[str]


def take(engine: Engine) -> Inventory:
    """The inventory now."""
    taking = _Taking(engine)
    for what, look in (
        ("the storage", taking.storage),
        ("the controller's journal", taking.controller),
        ("the node's journal", taking.node),
        ("the names of pods", taking.names),
        ("how full volumes are", taking.usage),
    ):
        try:
            look()
        except VolkitError as error:
            taking.notes.append(f"{what} cannot be looked at: {error.message}")
    volumes = sorted(taking.items.values(), key=lambda one: (one.name or one.id, one.id))
    return Inventory(node=engine.node_id, volumes=volumes, notes=taking.notes)


class _Taking:
    """One inventory as it is taken."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.items: dict[str, Item] = {}
        self.notes: list[str] = []

    def _item(self, volume_id: str) -> Item:
        return self.items.setdefault(volume_id, Item(id=volume_id))

    # -- the storage

    def storage(self) -> None:
        engine = self._engine
        if "list_volumes" in engine.operations:
            token, until = "", time.monotonic() + STORAGE_SECONDS
            while True:
                asked = r.ListRequest(limit=_PAGE, token=token)
                page = engine.run("list_volumes", asked, r.Call(deadline=until))
                for entry in page.entries:
                    self._found(entry)
                if not (token := page.next_token):
                    return

    def _found(self, entry: r.VolumeEntry) -> None:
        item = self._item(entry.volume.id)
        item.size = entry.volume.capacity or None
        item.attached = sorted({*item.attached, *entry.published_node_ids})

    # -- journals

    def controller(self) -> None:
        engine = self._engine
        if engine.provisioning is None:
            return
        for name, volume_id in engine.provisioning.names():
            self._item(volume_id).name = name
        unsized = []
        for entry in engine.journal.scan(key("volume", "")):
            item = self._item(parts(entry.key)[1])
            item.name = item.name or str(entry.value.get("name") or "")
            self._unfinished(item, entry)
            if item.size is None and "list_volumes" not in engine.operations:
                unsized.append(item)
        for entry in engine.journal.scan(key("attach", "")):
            item = self._item(parts(entry.key)[1])
            self._unfinished(item, entry)
            if entry.value["node"] not in item.attached:
                item.attached.append(entry.value["node"])
        self._look_each(unsized)

    def _unfinished(self, item: Item, entry: Any, table: Table | None = None) -> None:
        record = described(entry, table.is_mounted if table else mounts.is_mount_point)
        if record.unfinished:
            item.unfinished.append(record.state)

    def _look_each(self, items: list[Item]) -> None:
        """Ask for each volume by itself, where the storage lists none."""
        until = time.monotonic() + STORAGE_SECONDS

        def look(item: Item) -> None:
            self._found(
                self._engine.run("get_volume", r.GetVolumeRequest(volume_id=item.id), r.Call(deadline=until))
            )

        for item, error in _together(look, items):
            if error is not None and not self.notes:
                self.notes.append(f"volume {item.id} cannot be looked at: {error.message}")

    def node(self) -> None:
        engine = self._engine
        if engine.node_state is None:
            return
        table, places = Table(), Places(engine.node_journal)
        here: list[tuple[str, Mount]] = []
        for one in places:
            item = self._item(one.volume_id)
            self._unfinished(item, one.entry, table)
            top = table.top(one.path)
            there = one.settled and (top is not None or one.raw)
            if top is not None and not one.raw:
                here.append((one.volume_id, top))
            if one.kind == "stage":
                item.staged = one.path if there else ""
            elif top is not None:
                item.published.append(one.path)
                if (user := recorded_user(one.entry.value)) is not None:
                    item.users.append(user)
        for entry in engine.node_journal.scan(key("use", "")):
            item = self._item(parts(entry.key)[1])
            item.name = item.name or str(entry.value.get("name", ""))
            item.holders = sum(entry.value.get("holders", {}).values())
        self._seen(here, table)

    def _seen(self, here: list[tuple[str, Mount]], table: Table) -> None:
        """Pods that kubelet bound a volume for by itself, and containers that have it mounted."""
        which = Shown(here)
        for mount in table.all:
            uid = pod_uid(mount.mount_point)
            if uid and (volume_id := which.volume_of(mount)):
                self._used_by(volume_id, User(kind="pod", uid=uid, path=mount.mount_point))
        copies = {_tail(mount.mount_point) for _, mount in here}
        for container, pod, mount_table in containers():
            own = [
                one
                for one in mount_table
                if _tail(one.mount_point) not in copies and not pod_uid(one.mount_point)
            ]
            for volume_id in {which.volume_of(mount) for mount in own} - {""}:
                self._used_by(volume_id, User(kind="container", id=container, uid=pod))

    def names(self) -> None:
        """Pods that are known by their uid alone are named by the directories of their logs."""
        for item in self.items.values():
            item.users = [evolve(one, **_logged_as(one.uid)) if _nameless(one) else one for one in item.users]

    def _used_by(self, volume_id: str, user: User) -> None:
        item = self._item(volume_id)
        known = [one for one in item.users if one.kind == user.kind]
        if user.kind == "pod" and any(one.uid == user.uid for one in known):
            return
        if any(one.id == user.id and one.uid == user.uid for one in known):
            return
        item.users.append(user)

    # -- how full

    def usage(self) -> None:
        if "node_stats" not in self._engine.operations:
            return
        there = [one for one in self.items.values() if one.published or one.staged]
        until = time.monotonic() + USAGE_SECONDS

        def ask(item: Item) -> None:
            path = item.published[0] if item.published else item.staged
            asked = r.NodeStatsRequest(volume_id=item.id, volume_path=path)
            stats: r.NodeStats = self._engine.run("node_stats", asked, r.Call(deadline=until))
            if stats.usage.total:
                item.used = stats.usage.used
                item.size = item.size or stats.usage.total

        for _ in _together(ask, there):
            pass


def _together(
    work: Callable[[Item], None], items: Iterable[Item]
) -> Iterator[tuple[Item, VolkitError | None]]:
    """`work` of each, several at once, with the error that it raised."""

    def one(item: Item) -> tuple[Item, VolkitError | None]:
        try:
            work(item)
        except VolkitError as error:
            return item, error
        return item, None

    if items := list(items):
        with ThreadPoolExecutor(min(_AT_ONCE, len(items))) as threads:
            yield from threads.map(one, items)


# -- who -----------------------------------------------------------------------------------------------------


def recorded_user(target: Mapping[str, Any]) -> User | None:
    """The pod that a record of a target tells of, by its own words or by kubelet's path."""
    told = target.get("user") or {}
    uid = str(told.get("pod.uid", "")) or pod_uid(target["path"])
    name, namespace = str(told.get("pod.name", "")), str(told.get("pod.namespace", ""))
    if not (uid or name):
        return None
    return User(kind="pod", name=name, namespace=namespace, uid=uid, path=target["path"])


def pod_uid(path: str) -> str:
    """The uid of the pod that a path of kubelet's belongs to, or "" (…/pods/UID/volumes/…)."""
    found = _UID.search(path)
    return found[1] if found else ""


def _tail(path: str) -> str:
    """By which a copy is known of what is mounted here: a container into which kubelet's directory is mounted has one
    of every volume, and uses none.
    """
    return "/".join(path.split("/")[-2:])


def _nameless(user: User) -> bool:
    return user.kind == "pod" and not user.name and bool(user.uid)


def _logged_as(uid: str) -> dict[str, str]:
    """The name and the namespace of a pod: kubelet keeps its logs in NAMESPACE_NAME_UID."""
    for found in Path(POD_LOGS).glob(f"*_{uid}"):
        namespace, _, rest = found.name.partition("_")
        return {"namespace": namespace, "name": rest.removesuffix(f"_{uid}")}
    return {}


class Shown:
    """Which volume a mount shows: one whose file system is mounted here, and the same part of it or one inside."""

    def __init__(self, here: Iterable[tuple[str, Mount]]) -> None:
        self._at = {(mount.device, mount.root.rstrip("/")): volume_id for volume_id, mount in here}

    def volume_of(self, mount: Mount) -> str:
        """ "" where it shows none."""
        root = mount.root.rstrip("/")
        while (found := self._at.get((mount.device, root))) is None and root:
            root = root.rpartition("/")[0]
        return found or ""


def containers() -> Iterator[tuple[str, str, list[Mount]]]:
    """(id, uid of its pod or "", mount table) of every container that this process can see, one for each mount
    namespace; by its cgroup, or by the files that its engine mounts into it (/etc/hostname).
    """
    seen = {os.readlink("/proc/self/ns/mnt")}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            with open(f"/proc/{pid}/mountinfo", "rb") as file:
                table = mounts.parse_mountinfo(file.read())
            seen.add(namespace)
            with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
                cgroup = file.read()
            if container := _container_of(cgroup, table):
                pod = _CGROUP_POD.search(cgroup)
                yield container, pod[1].replace("_", "-") if pod else "", table


def _container_of(cgroup: str, table: list[Mount]) -> str:
    if found := _CONTAINER.findall(cgroup):
        return str(found[-1])
    for mount in table:
        if mount.mount_point in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf") and (
            inside := _CONTAINER.findall(mount.root)
        ):
            return str(inside[-1])
    return ""


def plain(inventory: Inventory) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "node": inventory.node,
        "volumes": [_plain(one) for one in inventory.volumes],
        "notes": inventory.notes,
    }


def _plain(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "name": item.name,
        "state": item.state,
        "size": item.size,
        "used": item.used,
        "attached": item.attached,
        "staged": item.staged,
        "published": item.published,
        "users": [{name: value for name, value in _fields(one).items() if value} for one in item.users],
        "holders": item.holders,
        "unfinished": item.unfinished,
    }


def _fields(user: User) -> dict[str, str]:
    return {name: getattr(user, name) for name in ("kind", "name", "namespace", "uid", "id", "path")}


def named_pods(item: Item) -> list[User]:
    """The users of a volume; a container whose pod is there too is left to its pod."""
    pods = {one.uid for one in item.users if one.kind == "pod"}
    return [one for one in item.users if one.kind == "pod" or one.uid not in pods or not one.uid]
