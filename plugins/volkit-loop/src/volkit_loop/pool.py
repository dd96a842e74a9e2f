"""The store: image files in a directory, and what is known of each, in an extended attribute of the file.

```text
pool/volumes/4f/v…4f.img    a volume; the directory is named by the last two characters of the id
pool/snapshots/a0/s…a0.img  a snapshot
pool/making/…/              one directory per process, locked by it: images that are being made or removed
pool/ledger                 what is free and what is promised (see `volkit.host.ledger`)
```

An image comes into its place complete, by one link(2), and leaves it by one rename(2). What a killed process
leaves in `making` is removed when the next one starts.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from attrs import asdict, evolve, frozen

from volkit import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
    VolkitError,
)
from volkit.host import files, freeze
from volkit.host.ledger import Ledger

log: logging.Logger = logging.getLogger(__name__)

VOLUMES: Final = "volumes"
SNAPSHOTS: Final = "snapshots"

_ID: Final = re.compile(r"[a-z][a-z0-9-]{1,61}[a-z0-9]", re.ASCII)
_SUFFIX: Final = ".img"
_ATTRIBUTES: Final = ("user.volkit", "trusted.volkit")  # tmpfs has no user attributes before Linux 6.6
_NO_ATTRIBUTE: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM})
_SHARED: Final = b'"shared": true'
_KINDS: Final[dict[int, type[VolkitError]]] = {
    errno.ENOSPC: ResourceExhausted,
    errno.EDQUOT: ResourceExhausted,
    errno.EFBIG: OutOfRange,
}


@frozen(kw_only=True)
class Record:
    """What an image says of itself: made of `parent` ("volumes/ID", "snapshots/ID") at `created` (Unix time);
    `shared` where it is one side of a reflink, `blank` where its parent had never been written to.
    """

    parent: str = ""
    created: float = 0
    preallocate: bool = False
    shared: bool = False
    blank: bool = False


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

    def exclusive(self) -> int:
        """Bytes in blocks of its own, which a reflink of it would make it share."""
        return self.allocated - (files.shared_bytes(self.path) if self.record.shared else 0)

    def claim(self) -> int:
        """Bytes it may still take of what is free: for its holes, and for its own copy of what it shares."""
        return max(self.size - self.exclusive(), 0) if self.kind == VOLUMES else 0


class Pool:
    """The images in one directory. Several threads and processes can use it at once."""

    def __init__(self, root: Path, *, overcommit: float = 1.0, freeze_limit: float = 30.0) -> None:
        self._root = os.fspath(root)
        self._freeze_limit = freeze_limit
        self._making = ""
        self._ledger = Ledger(f"{self._root}/ledger", overcommit, self._count)
        try:
            for name in (VOLUMES, SNAPSHOTS, "making"):
                with suppress(FileExistsError):
                    os.mkdir(f"{self._root}/{name}", 0o700)
            self._sweep()
        except OSError as error:
            raise FailedPrecondition(
                f"the pool {self._root} cannot be used ({error.strerror}): make it, or mount its file system"
            ) from error

    def path(self, kind: str, id_: str) -> str:
        """Where the image of this id is, or would be. Raises NotFound for an id that no image can have."""
        if not _ID.fullmatch(id_):
            raise NotFound(f"there is no {kind[:-1]} {id_[:128]!r} in the pool {self._root}")
        return f"{self._root}/{kind}/{id_[-2:]}/{id_}{_SUFFIX}"

    def volume_of(self, backing: str) -> str:
        """The id of the volume whose image in this pool is the file behind a loop device, also where it was deleted;
        "" for any other file. Ids come from names: another pool may well have the same.
        """
        path = backing.removesuffix(" (deleted)")
        id_ = os.path.basename(path).removesuffix(_SUFFIX)
        try:
            expected = self.path(VOLUMES, id_)
        except NotFound:
            return ""
        root = os.path.realpath(self._root)
        return id_ if path == f"{root}{expected.removeprefix(self._root)}" else ""

    def get(self, kind: str, id_: str) -> Image:
        """Raises NotFound."""
        path = self.path(kind, id_)
        try:
            found = os.stat(path, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise NotFound(f"{path} is no regular file, and so no {kind[:-1]}")
            record = _read_record(path)
        except FileNotFoundError:
            if not os.path.isdir(f"{self._root}/{kind}"):
                raise self._away() from None
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
        for shard in self._shards(kind, start[0]):
            for name in sorted(os.listdir(f"{self._root}/{kind}/{shard}")):
                id_ = name.removesuffix(_SUFFIX)
                if (shard, id_) > start and name != id_:
                    with suppress(NotFound):  # removed meanwhile, or not ours
                        yield self.get(kind, id_)

    def _shards(self, kind: str, first: str = "") -> list[str]:
        try:
            names = os.listdir(f"{self._root}/{kind}")
        except FileNotFoundError:
            raise self._away() from None
        return sorted(name for name in names if len(name) == 2 and name >= first)

    def _away(self) -> Unavailable:
        return Unavailable(f"the pool {self._root} is away: is its file system mounted?")

    def available(self, *, preallocate: bool = False) -> int:
        """Bytes that new images can still be promised, as of the last minute at most; or take at once."""
        with self._ledger.opened() as balance:
            found = self._ledger.available(balance, max_age=60)
        return min(found, files.free_bytes(self._root)) if preallocate else found

    def create(
        self, kind: str, id_: str, size: int, *, preallocate: bool = False, source: Image | None = None
    ) -> Image:
        """A new image of `size` bytes: blank, or with what `source` holds at one moment of the call.

        When it returns, the image survives a power cut. Raises AlreadyExists, ResourceExhausted, OutOfRange,
        FailedPrecondition where the source was written to while it was copied; nothing is left behind then.
        """
        path = self.path(kind, id_)
        parent = f"{source.kind}/{source.id}" if source else ""
        record = Record(parent=parent, created=time.time(), preallocate=preallocate)
        # a snapshot takes no more than its content now, or than the volume takes to part from it
        content = source.exclusive() if source and source.kind == VOLUMES else 0
        reserved = content if kind == SNAPSHOTS else size
        with self._reserved(reserved, record) as place:
            made = place
            if source:
                made = f"{place}.copy"
                record = self._copy(source, made, record)
                record = evolve(record, blank=files.reads_as_zeros(made))
                os.truncate(made, size)
                _write_record(made, record)
            if preallocate:
                files.allocate(made, size)
            charge = (content if record.shared else 0) - reserved
            image = self._publish(kind, id_, made, place, charge)
        _sync(path)
        files.sync_directory(os.path.dirname(path))
        return image

    def grow(self, image: Image, size: int) -> None:
        """Makes the image `size` bytes long. Raises ResourceExhausted, OutOfRange, and it is as it was."""
        more = size - image.size
        with _errors(f"cannot grow {image.id} to {size} bytes"):
            with self._ledger.opened() as balance:
                self._ledger.reserve(balance, more)
                counted = balance.counted
                if not image.record.preallocate:
                    os.truncate(image.path, size)
            if image.record.preallocate:
                try:
                    files.allocate(image.path, size)
                finally:  # taken, or not to be taken
                    with self._ledger.opened() as balance:
                        if balance.counted == counted:
                            balance.claims -= more
            _sync(image.path)

    def remove(self, image: Image) -> None:
        """Removes the image for good. Raises NotFound."""
        with self._ledger.opened() as balance:
            gone = f"{self._root}/making/{_token()}.removed"
            try:
                claim = image.claim()
                os.rename(image.path, gone)
            except FileNotFoundError:
                raise NotFound(f"there is no {image.kind[:-1]} {image.id!r} any more") from None
            balance.claims -= claim
            balance.free += image.allocated
        files.sync_directory(os.path.dirname(image.path))
        with suppress(FileNotFoundError):  # swept by a process that starts
            os.unlink(gone)

    @contextmanager
    def _reserved(self, size: int, record: Record) -> Iterator[str]:
        """A new sparse file in `making`, and a claim on `size` bytes; both go when the body fails."""
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
                with self._ledger.opened() as balance:
                    for name in (f"{place}.copy", place):
                        with suppress(FileNotFoundError):
                            os.unlink(name)
                    balance.claims -= size
                raise

    def _copy(self, source: Image, made: str, record: Record) -> Record:
        with freeze.frozen(source.path, self._freeze_limit):
            before = os.stat(source.path)
            way = files.clone(source.path, made)
            record = evolve(record, created=time.time(), shared=way == "reflink")
            after = os.stat(source.path)
        if record.shared and source.kind == VOLUMES and not source.record.shared:
            _write_record(source.path, evolve(source.record, shared=True))
            _sync(source.path)
        if way == "copy":
            log.info("%s was copied block by block: the pool's file system has no reflinks", source.path)
            if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
                raise FailedPrecondition(
                    f"the raw device of {source.id} was written to while it was copied: stop its users, "
                    "or put the pool on xfs or btrfs, where a copy takes no time"
                )
        return record

    def _publish(self, kind: str, id_: str, made: str, place: str, charge: int) -> Image:
        """Links the complete image into its place. The claims change by its own, and by `charge`."""
        path = self.path(kind, id_)
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
                raise AlreadyExists(f"there is a {kind[:-1]} {id_!r} already") from None
            for name in {made, place}:
                os.unlink(name)
            image = self.get(kind, id_)
            balance.claims += image.claim() + charge
            balance.free -= 0 if image.record.shared else image.allocated
        return image

    def _workshop(self) -> str:
        """This process's directory in `making`. To be called with the ledger locked, as whoever sweeps is."""
        if not self._making:
            making = f"{self._root}/making/{_token()}"
            os.mkdir(making, 0o700)
            descriptor = os.open(making, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self.release: weakref.finalize[[int], Pool] = weakref.finalize(self, os.close, descriptor)
            self._making = making
        return self._making

    def _sweep(self) -> None:
        """Removes what killed processes left in `making`. A file system that one left frozen is let go."""
        if not (left := os.listdir(f"{self._root}/making")):
            return
        with self._ledger.locked():
            for name in left:
                with suppress(FileNotFoundError, BlockingIOError):
                    descriptor = os.open(f"{self._root}/making/{name}", os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        # refused where its process lives
                        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        self._clear(f"{self._root}/making/{name}")
                    finally:
                        os.close(descriptor)

    def _clear(self, directory: str) -> None:
        if directory.endswith(".removed"):
            return os.unlink(directory)
        for name in os.listdir(directory):
            kind, _, source = _read_record(f"{directory}/{name}").parent.partition("/")
            try:
                if kind == VOLUMES:
                    freeze.thaw(self.path(kind, source))
            except (OSError, VolkitError) as error:
                log.warning("cannot tell whether the file system of %s is frozen: %s", source, error)
            log.info("removing %s/%s, left by a process that was killed", directory, name)
        return shutil.rmtree(directory)

    def _count(self) -> int:
        """What all volumes may still claim (as `Image.claim`), and what is being made, in full."""
        total = 0
        for shard in self._shards(VOLUMES):
            for entry in os.scandir(f"{self._root}/{VOLUMES}/{shard}"):
                found = entry.stat()
                shared = files.shared_bytes(entry.path) if _SHARED in _read_attribute(entry.path) else 0
                total += max(found.st_size - found.st_blocks * 512 + shared, 0)
        for making in os.scandir(f"{self._root}/making"):
            if making.is_dir():
                total += sum(one.stat().st_size for one in os.scandir(making) if "." not in one.name)
        return total


def _token() -> str:
    return f"{os.getpid()}-{os.urandom(8).hex()}"


def _sync(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file)


def _write_record(path: str, record: Record) -> None:
    text = json.dumps({name: value for name, value in asdict(record).items() if value}).encode()
    for name in _ATTRIBUTES:
        try:
            return os.setxattr(path, name, text)
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise
    raise FailedPrecondition(
        f"the file system of {path} has no extended attributes: put the pool on ext4, xfs, btrfs or tmpfs"
    )


def _read_attribute(path: str) -> bytes:
    for name in _ATTRIBUTES:
        try:
            return os.getxattr(path, name)
        except OSError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise
    return b"{}"  # put there by a person


def _read_record(path: str) -> Record:
    try:
        return Record(**json.loads(_read_attribute(path)))
    except (ValueError, TypeError) as error:
        log.warning("%s has an unreadable record (%s): taken as an image without parent", path, error)
        return Record()


@contextmanager
def _errors(sentence: str) -> Iterator[None]:
    """What a full file system says is ResourceExhausted, whichever call it says it to."""
    try:
        yield
    except OSError as error:
        kind = _KINDS.get(error.errno or 0)
        if kind is None:
            raise
        raise kind(f"{sentence}: {error.strerror}") from error
