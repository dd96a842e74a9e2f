"""What `attach` answers as the device: where the volume was attached, carried by Kubernetes to the node.

`volkit:vol-1?n=data&p.lun=3&c.firstFormat=true` holds the volume's id, what the options called it (n), its publish
context (p.) and volume context (c.). The device itself is known only on the node, and is looked for there by its
identity; kubelet takes any text (CSI's own attacher gives it no device either), hands it to waitforattach and
mountdevice, and shows it in the node's status.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, unquote, urlencode

from attrs import frozen

from volkit import InvalidArgument, NotFound

_SCHEME = "volkit:"


@frozen
class Attachment:
    """A volume as it was attached; no secrets in it. `wanted` is what the options called it, "" where nobody knows."""

    volume_id: str
    wanted: str
    publish_context: Mapping[str, str]
    volume_context: Mapping[str, str]


def encode(attachment: Attachment) -> str:
    """The text for Kubernetes."""
    contexts = (("p", attachment.publish_context), ("c", attachment.volume_context))
    facts = [("n", attachment.wanted)] if attachment.wanted else []
    facts += [
        (f"{letter}.{key}", value) for letter, context in contexts for key, value in sorted(context.items())
    ]
    return _SCHEME + quote(attachment.volume_id, safe="") + (f"?{urlencode(facts)}" if facts else "")


def decode(device: str) -> Attachment | None:
    """What `encode` made; None for the path of a device that is there, as a driver before this one attached it, and
    for "". Raises InvalidArgument for anything else, NotFound for a path where no device is.
    """
    if device.startswith(_SCHEME):
        name, _, query = device.removeprefix(_SCHEME).partition("?")
        facts = parse_qsl(query, keep_blank_values=True)
        if not name or any(key != "n" and key[:2] not in ("p.", "c.") for key, _ in facts):
            raise InvalidArgument("the device is not what attach answered: it is cut short or changed")
        contexts = {letter: {k[2:]: v for k, v in facts if k[0] == letter} for letter in "pc"}
        return Attachment(unquote(name), dict(facts).get("n", ""), contexts["p"], contexts["c"])
    if not device:
        return None
    if not device.startswith("/"):
        raise InvalidArgument(f"device {device[:64]!r} is neither what attach answered nor an absolute path")
    try:
        is_device = stat.S_ISBLK(os.stat(device).st_mode)
    except OSError as error:
        raise NotFound(f"device {device[:64]!r} is not there: {error.strerror}") from None
    if not is_device:
        raise InvalidArgument(f"device {device[:64]!r} is no block device")
    return None
