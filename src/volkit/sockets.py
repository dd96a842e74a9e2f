"""A unix socket that belongs to one driver, and is never seen half made.

```python
listener = Listener(UnixSocket("/run/volkit/acme.sock", mode=0o660))
with listener.private():
    server.bind(listener.address)
listener.publish()
```
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen

from volkit.errors import FailedPrecondition, InvalidArgument, PermissionDenied

MAX_PATH = 107
"""Bytes of a socket's path, without its final NUL (man 7 unix, `sun_path`)."""


@frozen
class UnixSocket:
    """A unix socket to serve on.

    `path` is absolute; whoever may write to the socket may call the driver, so `mode`, `owner` and `group`
    (numeric ids, None: those of the process) are the access control.
    """

    path: str
    mode: int = 0o660
    owner: int | None = None
    group: int | None = None

    def __str__(self) -> str:
        return f"unix://{self.path}"


def user_id(name: str) -> int | None:
    """The id of a user by name or number; None for the empty name."""
    if not name or (name.isascii() and name.isdigit()):
        return int(name) if name else None
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise InvalidArgument(f"socket owner {name!r}: there is no such user; give its number") from None


def group_id(name: str) -> int | None:
    """The id of a group by name or number; None for the empty name."""
    if not name or (name.isascii() and name.isdigit()):
        return int(name) if name else None
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidArgument(f"socket group {name!r}: there is no such group; give its number") from None


class Listener:
    """Puts a server's socket at its endpoint in one step, and takes it away if it is still the same.

    The server binds `address`, a hidden name in the endpoint's directory. `publish` gives that socket its
    owner and mode and renames it to the endpoint: callers never meet one that is half set up, a stale socket
    is replaced without a gap, and a server that unlinks the name that it bound cannot hit the socket of a
    successor.
    """

    def __init__(self, endpoint: UnixSocket) -> None:
        """Make the endpoint's directory where it is missing, and look what is at the endpoint.

        Raises FailedPrecondition when a driver answers there or when it is no socket, PermissionDenied or
        FailedPrecondition when the directory cannot be made or searched.
        """
        self.endpoint = endpoint
        with explained(endpoint, "prepare"):
            make_parent(endpoint)
            refuse_occupied(endpoint.path)
        self._temporary = spare_name(endpoint.path)
        self._identity: tuple[int, int] | None = None

    @property
    def address(self) -> str:
        """The path to bind."""
        return self._temporary

    @contextmanager
    def private(self) -> Iterator[None]:
        """Bind inside: only this process's user may use the new socket. It sets the umask of all threads."""
        before = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(before)

    def publish(self) -> None:
        """Give the bound socket its owner, group and mode and move it to the endpoint."""
        endpoint = self.endpoint
        try:
            with explained(endpoint, "set up"):
                set_owner(self._temporary, endpoint)
                os.chmod(self._temporary, endpoint.mode)
                self._identity = identity(self._temporary)
                os.rename(self._temporary, endpoint.path)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the socket, unless another process has put its own there. To repeat it does nothing."""
        try:
            os.unlink(self._temporary)
        except FileNotFoundError:
            pass
        try:
            if self._identity is not None and identity(self.endpoint.path) == self._identity:
                os.unlink(self.endpoint.path)
        except FileNotFoundError:
            pass
        self._identity = None


def make_parent(endpoint: UnixSocket) -> None:
    """Make the socket's directory, open to those whom the socket's mode admits and to nobody else.

    Directories above it are made as usual (0777 less the umask); one that exists is left as it is.
    """
    parent = os.path.dirname(endpoint.path)
    if os.path.isdir(parent):
        return
    os.makedirs(os.path.dirname(parent), exist_ok=True)
    try:
        os.mkdir(parent, 0o700)
    except FileExistsError:  # made meanwhile; or no directory, which the bind will say
        return
    set_owner(parent, endpoint)
    os.chmod(parent, 0o755 if endpoint.mode & 0o007 else 0o750)


def set_owner(path: str, endpoint: UnixSocket) -> None:
    if endpoint.owner is not None or endpoint.group is not None:
        keep = -1
        os.chown(
            path,
            keep if endpoint.owner is None else endpoint.owner,
            keep if endpoint.group is None else endpoint.group,
            follow_symlinks=False,
        )


def refuse_occupied(path: str) -> None:
    """Raise FailedPrecondition unless `path` is free or a socket that nobody listens on any more."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "file")
        raise FailedPrecondition(
            f"endpoint unix://{path}: a {kind} is there; remove it, or choose another path"
        )
    if answers(path):
        raise FailedPrecondition(
            f"endpoint unix://{path}: a running process answers there; stop it, or choose another path"
        )


KINDS = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "named pipe",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
}


def answers(path: str) -> bool:
    """Whether anybody listens on the socket at `path`; also True when that cannot be found out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(path)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT)
    return True


def spare_name(path: str) -> str:
    """A free name beside `path` and not longer than it, so that it can be bound wherever `path` could be."""
    parent, name = os.path.split(path)
    size = max(1, min(len(os.fsencode(name)), 13) - 1)
    for _ in range(100):
        spare = os.path.join(parent, "." + os.urandom(6).hex()[:size])
        if not os.path.lexists(spare):
            return spare
    raise FailedPrecondition(
        f"endpoint unix://{path}: no free name beside it; choose a longer name for the socket"
    )


def identity(path: str) -> tuple[int, int]:
    """Device and inode of `path` itself."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


@contextmanager
def explained(endpoint: UnixSocket, action: str) -> Iterator[None]:
    """Turn what the system says into an error that names the endpoint."""
    try:
        yield
    except PermissionError as error:
        raise PermissionDenied(
            f"cannot {action} endpoint {endpoint}: {error}; run as root or choose another path"
        ) from error
    except OSError as error:
        raise FailedPrecondition(f"cannot {action} endpoint {endpoint}: {error}") from error
