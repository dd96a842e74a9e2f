"""Messages as text for the debug log, without what nobody may read there.

Masked are the fields that the CSI spec marks `csi_secret`; the mount flags, which it does not mark and which
hold the passwords of CIFS mounts; the tokens that kubelet adds to a volume's context; and the parameters that
a backend declares secret, in whatever map they turn up.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from volkit_csi.wire import SECRET_FIELD

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

MASK = "***"
_TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"  # kubernetes, CSIDriver.spec.tokenRequests


class Redactor:
    """Makes one line of text of a message. `secret_keys` are masked in every map."""

    def __init__(self, secret_keys: Collection[str] = ()) -> None:
        self._keys = frozenset({_TOKENS, *secret_keys})

    def __call__(self, message: Message) -> str:
        from google.protobuf import text_format

        shown = type(message)()
        shown.CopyFrom(message)
        self._mask(shown)
        return text_format.MessageToString(shown, as_one_line=True)

    def _mask(self, message: Any) -> None:
        secret, maps, inner, repeated = _fields(message.DESCRIPTOR)
        for name in secret:
            values = getattr(message, name)
            if not values:
                continue
            message.ClearField(name)
            if name == "mount_flags":
                getattr(message, name).append(MASK)
            else:
                getattr(message, name)[MASK] = MASK
        for name in maps:
            values = getattr(message, name)
            for key in self._keys.intersection(values):
                values[key] = MASK
        for name in inner:
            if message.HasField(name):
                self._mask(getattr(message, name))
        for name in repeated:
            for one in getattr(message, name):
                self._mask(one)


@cache
def _fields(message: Descriptor) -> tuple[list[str], list[str], list[str], list[str]]:
    """Names of the fields of a message: secret ones, other maps, messages, repeated messages."""
    secret: list[str] = []
    maps: list[str] = []
    inner: list[str] = []
    repeated: list[str] = []
    for field in message.fields:
        if field.name in (SECRET_FIELD, "mount_flags"):
            secret.append(field.name)
        elif field.message_type is None:
            continue
        elif field.message_type.GetOptions().map_entry:
            maps.append(field.name)
        else:
            (repeated if field.is_repeated else inner).append(field.name)
    return secret, maps, inner, repeated
