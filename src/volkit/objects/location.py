"""Where a volume is, as its id says it."""

from __future__ import annotations

import hashlib
import re
from typing import Final
from urllib.parse import quote

from attrs import frozen

from volkit.endpoints import Endpoints
from volkit.errors import InvalidArgument, NotFound, PermissionDenied, quoted

RESERVED: Final = ".volkit/"
"""The keys of a shared bucket under which volkit keeps what it knows of its prefixes."""

_BUCKET: Final = re.compile(r"(?!.*\.\.)(?!\d+(\.\d+){3}$)(?!xn--)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_ID: Final = re.compile(r"(?:(https?://[^/]*)/)?([^/]+)(?:/(.+))?", re.DOTALL)
_MAX_PREFIX: Final = 300


@frozen
class Location:
    """A bucket, or a prefix in one. `endpoint` is a URL; "" is the driver's own server. `prefix` is "" for the whole
    bucket, and has no slash at its ends.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""

    @property
    def id(self) -> str:
        """The volume's id: `bucket`, `bucket/prefix`, and the URL of its server before it where that is another one."""
        return "/".join(filter(None, (self.endpoint, self.bucket, self.prefix)))

    @property
    def begin(self) -> str:
        """What the keys of the volume's objects begin with."""
        return f"{self.prefix}/" if self.prefix else ""

    @property
    def mark_key(self) -> str:
        """The object with what volkit knows of a prefix, beside it."""
        return f"{RESERVED}{quote(self.prefix, safe='')}"

    @classmethod
    def read(cls, id_: str, allowed: Endpoints) -> Location:
        """Raises NotFound for an id that no volume can have, PermissionDenied for a server that is not allowed."""
        match = _ID.fullmatch(id_)
        if match is None:
            raise NotFound(f"{quoted(id_)} is neither BUCKET nor BUCKET/PREFIX")
        try:
            return cls.checked(match[2], match[3] or "", match[1] or "", allowed)
        except InvalidArgument as error:
            raise NotFound(f"there is no volume {quoted(id_)}: {error}") from None

    @classmethod
    def checked(cls, bucket: str, prefix: str, endpoint: str, allowed: Endpoints) -> Location:
        """Raises InvalidArgument for what no store allows, PermissionDenied for a server that is not allowed."""
        if not _BUCKET.fullmatch(bucket):
            raise InvalidArgument(
                f"{quoted(bucket)} is no bucket's name: 3 to 63 of a-z, 0-9, '-' and '.', no address, no '..'"
            )
        odd = set(prefix.removesuffix("/").split("/")) & {"", ".", ".."} if prefix else ()
        prefix = prefix.removesuffix("/")
        if odd or not prefix.isprintable() or len(prefix.encode()) > _MAX_PREFIX:
            raise InvalidArgument(
                f"{quoted(prefix)} is no prefix: no empty part, '.' or '..', {_MAX_PREFIX} bytes at most"
            )
        if f"{prefix}/".startswith(RESERVED):
            raise PermissionDenied(f"the prefix {RESERVED} is volkit's own")
        server = allowed.resolve(endpoint)
        return cls(bucket, prefix, "" if server == allowed.own else server)


def name_of(name: str, begin: str = "") -> str:
    """The name of the bucket or prefix that is made for a volume's name: the same each time, told from all others, and
    allowed by every store where `begin` is (a DNS label of RFC 1123).
    """
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower())[:20].strip("-")
    digest = hashlib.blake2b(name.encode(), digest_size=10).hexdigest()
    return f"{begin}{readable}-{digest}" if readable else f"{begin}{digest}"
