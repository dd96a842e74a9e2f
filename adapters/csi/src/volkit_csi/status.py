"""How a call ends: the gRPC codes that a CSI driver answers, and the error that carries one.

INTERNAL, UNKNOWN and DATA_LOSS are left out on purpose. The Kubernetes provisioner takes them as final and
forgets the volume, although the create may have gone through (external-provisioner, `checkError`).
"""

from __future__ import annotations

from enum import IntEnum

MAX_MESSAGE = 2000
"""Bytes of a message that are sent. It travels percent-encoded in a header, and a gRPC client that gets more
than 8 KiB of headers reports RESOURCE_EXHAUSTED instead of the code: final for the provisioner."""


class Code(IntEnum):
    """The status codes of gRPC (`google.rpc.Code`) that a driver may answer."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class RpcError(Exception):
    """Ends the call with `code` and `message`; details are never sent (CSI spec: they MUST be empty)."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def header_text(message: str) -> str:
    """`message` as it can be sent: valid UTF-8, cut to `MAX_MESSAGE` bytes with "..." at its end."""
    data = message.encode("utf-8", "replace")
    if len(data) > MAX_MESSAGE:
        data = data[: MAX_MESSAGE - 3].decode("utf-8", "ignore").encode() + b"..."
    return data.decode()
