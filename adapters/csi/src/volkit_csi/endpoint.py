"""Where a CSI driver listens: one unix socket that belongs to it, and nothing else.

The CSI specification (section "CSI_ENDPOINT") gives `unix:///path/to/driver.sock`; gRPC also writes
`unix:/path`, and Docker Swarm passes the bare path.
"""

from __future__ import annotations

import os

from attrs import frozen

from volkit import InvalidArgument
from volkit.sockets import MAX_PATH, UnixSocket, group_id, user_id

SEE = "write unix:///run/volkit/csi.sock, unix:/run/volkit/csi.sock or /run/volkit/csi.sock"


@frozen
class Endpoint(UnixSocket):
    """A unix socket, as CSI writes one."""

    @classmethod
    def parse(cls, text: str, *, mode: int = 0o660, owner: str = "", group: str = "") -> Endpoint:
        """Read `unix:///abs`, `unix:/abs` or `/abs`; owner and group are names or ids; empty: the process's.

        Raises InvalidArgument for everything else: another scheme, a host part, a relative, over-long or odd
        path, a mode that is not one of permission bits, a name that this system does not know.
        """
        if not 0 < mode <= 0o777:
            raise InvalidArgument(f"socket mode {mode:#o}: give permission bits such as 0660")
        return cls(socket_path(text), mode, user_id(owner), group_id(group))


def socket_path(text: str) -> str:
    """The path in an endpoint; InvalidArgument says what is wrong with it and how to write it."""
    scheme, colon, rest = text.partition(":")
    if not text:
        raise InvalidArgument(f"the endpoint is empty; {SEE}")
    if text.startswith("/"):
        path = text
    elif colon and scheme == "unix":
        path = rest.removeprefix("//")
        if rest.startswith("//") and not path.startswith("/"):
            raise InvalidArgument(
                f"endpoint {text!r}: {path.split('/')[0]!r} would be a host; three slashes: {SEE}"
            )
    elif colon and "/" not in scheme:
        raise InvalidArgument(f"endpoint {text!r}: {scheme!r} is not served, only unix sockets are; {SEE}")
    else:
        path = text
    if not path.startswith("/"):
        raise InvalidArgument(f"endpoint {text!r}: {path!r} is not an absolute path; {SEE}")
    if "\0" in path:
        raise InvalidArgument(f"endpoint {text!r}: the path has a NUL byte")
    if os.path.basename(path) in ("", ".", ".."):
        raise InvalidArgument(
            f"endpoint {text!r}: the path names a directory; add the socket's name, such as csi.sock"
        )
    length = len(os.fsencode(path))
    if length > MAX_PATH:
        raise InvalidArgument(
            f"endpoint {text!r}: the path has {length} bytes, a unix socket's at most {MAX_PATH}"
        )
    return path
