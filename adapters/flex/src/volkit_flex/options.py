"""What the options of a call say: Kubernetes' own keys, credentials, the volume's name and size, and what is left for
the backend.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from volkit import Backend, InvalidArgument, Secrets, split_metadata
from volkit.options import declared
from volkit.wanted import Wanted, read, read_switch
from volkit_flex.wire import EXPLICIT, NAME, POD_UID, Callout, identity

_log = logging.getLogger("volkit.flex")

_SECRET = "kubernetes.io/secret/"
_FS_TYPE = "kubernetes.io/fsType"
_READ_WRITE = "kubernetes.io/readwrite"
_FS_GROUP = ("kubernetes.io/mounterArgs.FsGroup", "kubernetes.io/fsGroup")  # since 1.15, and before
OWN = ("create", "ephemeral", "firstFormat")
_CREDENTIAL = re.compile(
    r"(?:access|secret|private|account|api)[-_]?(?:access[-_]?)?key(?:[-_]?id)?|pass(?:word|phrase|wd)?|secret|(?:\w+[-_]?)?token",
    re.IGNORECASE,
)
_PODS = re.compile(r"/pods/([^/]+)/volumes/[^/]+/([^/]+)\Z")
_DEVICES = re.compile(r"/plugins/kubernetes\.io/flexvolume/.+/mounts/([^/]+)\Z")


@frozen(kw_only=True)
class Options:
    """One call's options, read. `name` is the PV's name or the pod's own name for the volume, `volume` what identifies
    it; `create` says that it may be made; `parameters` are the backend's own, with those that it declares secret.
    """

    name: str
    volume: str
    explicit: bool
    inline: bool
    wanted: Wanted
    fs_type: str
    readonly: bool
    fs_group: str
    create: bool
    ephemeral: bool
    first_format: bool
    secrets: Secrets
    metadata: Mapping[str, str]
    parameters: Mapping[str, str]


def read_options(call: Callout, backend: type[Backend[Any, Any]], *, attaches: bool) -> Options:
    """`attaches`: the driver is one with attach, where no volume is a pod's alone.

    Raises InvalidArgument: a value that cannot be read, a secret that is not base64, a volume that nothing names.
    """
    own, platform = split_metadata(call.options)
    secrets = _secrets(platform)
    theirs = {spelling: one for one in declared(backend.parameters) for spelling in one.spellings}
    inline = not attaches and not any(own.get(key) for key in EXPLICIT)
    volume = identity(call.options, inline=inline)
    _check_place(call)
    for key in EXPLICIT:
        if key not in theirs:
            own.pop(key, None)
    credentials = {
        key: value
        for key, value in own.items()
        if (theirs[key].secret if key in theirs else _CREDENTIAL.fullmatch(key))
    }
    if credentials:
        _log.warning(
            "volume %r: the credentials %s are in its options, where everybody who may read pods sees them: "
            "use secretRef",
            volume,
            ", ".join(sorted(credentials)),
        )
    switches = {key: own.pop(key) for key in OWN if key in own and key not in theirs}
    wanted = read({key: value for key, value in own.items() if key not in credentials}, backend)
    declared_credentials = {key: value for key, value in credentials.items() if key in theirs}
    asks = bool(wanted.capacity.required or wanted.source or call.options.get("ephemeral"))
    return Options(
        name=platform.get(NAME, "") or volume,
        volume=volume,
        explicit=any(call.options.get(key) for key in EXPLICIT),
        inline=inline and volume != platform.get(NAME),
        wanted=wanted,
        fs_type=wanted.asked.fs_type or platform.get(_FS_TYPE, ""),
        readonly=wanted.asked.readonly or _is_readonly(platform),
        fs_group=_fs_group(platform),
        create=read_switch("create", switches["create"]) if "create" in switches else asks,
        ephemeral=read_switch("ephemeral", switches["ephemeral"]) if "ephemeral" in switches else False,
        first_format=read_switch("firstFormat", switches["firstFormat"])
        if "firstFormat" in switches
        else False,
        secrets=Secrets({**credentials, **secrets}),
        metadata={key: value for key, value in platform.items() if not key.startswith(_SECRET)},
        parameters={**wanted.parameters, **declared_credentials},
    )


def secret_values(options: Mapping[str, str], backend: type[Backend[Any, Any]]) -> tuple[str, ...]:
    """What must never be shown of a call's options, before they are read: also what is wrong in them."""
    theirs = {spelling for one in declared(backend.parameters) if one.secret for spelling in one.spellings}
    values = []
    for key, value in options.items():
        if key.startswith(_SECRET):
            values.append(value)
            try:
                values.append(_decoded(value))
            except ValueError:
                continue
        elif key in theirs or _CREDENTIAL.fullmatch(key):
            values.append(value)
    return tuple(filter(None, values))


def _secrets(platform: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for key, value in platform.items():
        if key.startswith(_SECRET):
            name = key.removeprefix(_SECRET)
            try:
                found[name] = _decoded(value)
            except ValueError:
                raise InvalidArgument(
                    f"secret {name[:64]!r} is not base64 of a text, as kubelet encodes what is in a Secret"
                ) from None
    return found


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise ValueError("not base64 of a text") from None


def _is_readonly(platform: Mapping[str, str]) -> bool:
    word = platform.get(_READ_WRITE, "rw")
    if word not in ("ro", "rw", ""):
        raise InvalidArgument(f"option {_READ_WRITE!r} is {word[:64]!r}: it is ro or rw")
    return word == "ro"


def _fs_group(platform: Mapping[str, str]) -> str:
    for key in _FS_GROUP:
        if group := platform.get(key, ""):
            if not group.isascii() or not group.isdecimal() or int(group) >= 2**32 - 1:
                raise InvalidArgument(f"option {key!r} is {group[:64]!r}: it is the number of a group")
            return group
    return ""


def _check_place(call: Callout) -> None:
    """Options that a user writes override Kubernetes' own keys (pkg/volume/flexvolume): where kubelet's path tells
    whose volume it is, it is believed. Raises InvalidArgument where they differ.
    """
    path = os.path.normpath(call.path) if call.path else ""
    told: dict[str, str] = {}
    if place := _PODS.search(path):
        told = {POD_UID: place[1], NAME: place[2]}
    elif place := _DEVICES.search(path):
        told = {NAME: place[1]}
    for key, real in told.items():
        if call.options.get(key, real) != real:
            raise InvalidArgument(
                f"option {key!r} is {call.options[key][:64]!r}, and kubelet's directory says {real!r}"
            )
