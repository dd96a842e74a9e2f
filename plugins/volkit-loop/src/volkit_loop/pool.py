"""The store: image files in a directory, and what is known of each one, in an extended attribute of the file itself.

```text
pool/volumes/4f/v…4f.img    a volume; the directory is named by the last two characters of the id
pool/snapshots/a0/s…a0.img  a snapshot
pool/making/…/              one directory per process, locked by it: images that are being made or removed
pool/ledger                 what is free and what is promised (see `ledger`)
```

An image comes into its place complete, by one link(2), and leaves it by one rename(2). What a killed process leaves in
`making` is removed when the next one starts.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from attrs import asdict, evolve, fields, frozen
from volkit import AlreadyExists, FailedPrecondition, NotFound, OutOfRange, ResourceExhausted
from volkit.host import files

from volkit_loop import freeze
from volkit_loop.extents import shared_bytes
from volkit_loop.ledger import Ledger

log = logging.getLogger(__name__)

VOLUMES: Final = "volumes"
SNAPSHOTS: Final = "snapshots"

_ID: Final = re.compile(r"[a-z][a-z0-9-]{1,61}[a-z0-9]", re.ASCII)
_SUFFIX: Final = ".img"
_ATTRIBUTES: Final = ("user.volkit", "trusted.volkit")  # tmpfs has no user attributes before Linux 6.6
_NO_ATTRIBUTE: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM})


@frozen(kw_only=True)
class Record:
    """What an image says of itself. `parent` is "volumes/ID" or "snapshots/ID", `created` Unix time; `shared`: a reflink."""

    parent: str = ""
    created: float = 0
    preallocate: bool = False
    shared: bool = False


@frozen(kw_only=True)
class Image:
    """One image file. Sizes in bytes; `inode` is "<st_dev>:<st_ino>"."""

    kind: str
    id: str
    path: str
    size: int
    allocated: int
    inode: str
    record: Record

    @property
    def claim(self) -> int:
        """Bytes it may still take of what is free: to fill its holes, and for its own copy of what it shares."""
        holes = max(self.size - self.allocated, 0) if self.kind == VOLUMES else 0
        return holes + (shared_bytes(self.path) if self.record.shared else 0)


class Pool:
    """The images in one directory. Several threads and processes can use it at once."""

    def __init__(self, root: Path, *, overcommit: float = 1.0, freeze_limit: float = 30.0) -> None:
        self._root = os.fspath(root)
        self._freeze_limit = freeze_limit
        self._making = ""
        try:
            for name in ("", VOLUMES, SNAPSHOTS, "making"):
                with suppress(FileExistsError):
                    os.mkdir(f"{self._root}/{name}", 0o700)
            self._ledger = Ledger(f"{self._root}/ledger", overcommit, self._count)
            self._sweep()
        except OSError as error:
            raise FailedPrecondition(f"the pool {self._root} cannot be used: {error.strerror}") from error

    def path(self, kind: str, id_: str) -> str:
        """Where the image of this id is, or would be. Raises NotFound for an id that no image can have."""
        if not _ID.fullmatch(id_):
            raise NotFound(f"there is no {kind[:-1]} {id_[:128]!r} in the pool {self._root}")
        return f"{self._root}/{kind}/{id_[-2:]}/{id_}{_SUFFIX}"

    def get(self, kind: str, id_: str) -> Image:
        """Raises NotFound."""
        path = self.path(kind, id_)
        try:
            found = os.stat(path)
            record = _read_record(path)
        except FileNotFoundError:
            raise NotFound(f"there is no {kind[:-1]} {id_!r} in the pool {self._root}") from None
        return Image(
            kind=kind,
            id=id_,
            path=path,
            size=found.st_size,
            allocated=found.st_blocks * 512,
            inode=f"{found.st_dev}:{found.st_ino}",
            record=record if record.created else evolve(record, created=found.st_mtime),
        )

    def after(self, kind: str, last: str = "") -> Iterator[Image]:
        """The images that come after the id `last`, in the order of their directory, then their id."""
        start = (last[-2:], last)
        for shard in sorted(os.listdir(f"{self._root}/{kind}")):
            if shard < start[0]:
                continue
            for name in sorted(os.listdir(f"{self._root}/{kind}/{shard}")):
                id_ = name.removesuffix(_SUFFIX)
                if (shard, id_) > start and name != id_:
                    with suppress(NotFound):  # removed meanwhile, or not ours
                        yield self.get(kind, id_)

    def available(self) -> int:
        """Bytes that new images can still be promised, as of the last minute at most."""
        with self._ledger.opened() as balance:
            return self._ledger.available(balance, max_age=60)

    def create(
        self, kind: str, id_: str, size: int, *, preallocate: bool = False, source: Image | None = None
    ) -> Image:
        """A new image of `size` bytes: blank, or with the content of `source` as it is at one moment during the call.

        When it returns, the image survives a power cut. Raises AlreadyExists, ResourceExhausted, OutOfRange,
        FailedPrecondition where the source was written to while it was copied; nothing is left behind then.
        """
        path = self.path(kind, id_)
        parent = f"{source.kind}/{source.id}" if source else ""
        record = Record(parent=parent, created=time.time(), preallocate=preallocate)
        reserved = source.allocated if source and kind == SNAPSHOTS else size
        with self._reserved(reserved, record) as place:
            made = place
            if source:
                made = f"{place}.copy"
                record = self._copy(source, made, record)
                os.truncate(made, size)
                _write_record(made, record)
            if preallocate:
                files.allocate(made, size)
            self._publish(made, place, path, reserved)
        with open(path, "rb") as file:
            os.fsync(file)
        files.sync_directory(os.path.dirname(path))
        return self.get(kind, id_)

    def grow(self, image: Image, size: int) -> None:
        """Makes the image `size` bytes long. Raises ResourceExhausted, OutOfRange, with the image as it was."""
        more = size - image.size
        with _errors(f"cannot grow {image.id} to {size} bytes"):
            with self._ledger.opened() as balance:
                self._ledger.reserve(balance, more)
                if not image.record.preallocate:
                    os.truncate(image.path, size)
            if image.record.preallocate:
                try:
                    files.allocate(image.path, size)
                except BaseException:
                    self._give_back(more)
                    raise
            with open(image.path, "rb") as file:
                os.fsync(file)

    def remove(self, image: Image) -> None:
        """Removes the image for good. Raises NotFound."""
        with self._ledger.opened() as balance:
            gone = f"{self._workshop()}/{_token()}.removed"
            try:
                claim = image.claim
                os.rename(image.path, gone)
            except FileNotFoundError:
                raise NotFound(f"there is no {image.kind[:-1]} {image.id!r} any more") from None
            balance.claims -= claim
            balance.free += image.allocated
        files.sync_directory(os.path.dirname(image.path))
        os.unlink(gone)

    @contextmanager
    def _reserved(self, size: int, record: Record) -> Iterator[str]:
        """A new sparse file in `making`, which holds the claim on `size` bytes; both are given back when the body fails."""
        with _errors(f"cannot make an image of {size} bytes in the pool {self._root}"):
            with self._ledger.opened() as balance:
                self._ledger.reserve(balance, size)
                place = f"{self._workshop()}/{_token()}"
                os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                try:
                    os.truncate(place, size)
                    _write_record(place, record)
                except BaseException:
                    os.unlink(place)
                    raise
            try:
                yield place
            except BaseException:
                for name in (f"{place}.copy", place):
                    with suppress(FileNotFoundError):
                        os.unlink(name)
                self._give_back(size)
                raise

    def _give_back(self, size: int) -> None:
        with self._ledger.opened() as balance:
            balance.claims -= size

    def _copy(self, source: Image, made: str, record: Record) -> Record:
        with freeze.frozen(source.path, self._freeze_limit):
            before = os.stat(source.path)
            way = files.clone(source.path, made)
            record = evolve(record, created=time.time(), shared=way == "reflink")
            after = os.stat(source.path)
        if way == "copy":
            log.info("%s/%s was copied, block by block: the pool's file system has no reflinks", source.kind, source.id)
            if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
                raise FailedPrecondition(
                    f"the raw device of {source.id} was written to while it was copied: stop its users, "
                    "or put the pool on xfs or btrfs, where a copy takes no time"
                )
        return record

    def _publish(self, made: str, place: str, path: str, reserved: int) -> None:
        kind, shard, name = path.rsplit("/", 3)[1:]
        try:
            os.mkdir(os.path.dirname(path), 0o700)
        except FileExistsError:
            pass
        else:
            files.sync_directory(f"{self._root}/{kind}")
        with self._ledger.opened() as balance:
            try:
                os.link(made, path)
            except FileExistsError:
                raise AlreadyExists(f"there is a {kind[:-1]} {name.removesuffix(_SUFFIX)!r} already") from None
            for name in {made, place}:
                os.unlink(name)
            image = self.get(kind, name)
            balance.claims += image.claim - reserved
            balance.free -= 0 if image.record.shared else image.allocated

    def _workshop(self) -> str:
        """This process's directory in `making`. To be called with the ledger locked, as whoever sweeps is."""
        if not self._making:
            making = f"{self._root}/making/{_token()}"
            os.mkdir(making, 0o700)
            descriptor = os.open(making, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            weakref.finalize(self, os.close, descriptor)
            self._making = making
        return self._making
