"""A volume in an object store: what is known of it, and what is done to all that is in it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote, unquote

from volkit.errors import AlreadyExists, FailedPrecondition, InUse, NotFound, PermissionDenied
from volkit.model import Usage
from volkit.objects.bucket import Bucket, Object
from volkit.objects.location import RESERVED, Location

TAG: Final = "volkit.io/"
"""What the names of volkit's own tags begin with."""

_COPIES: Final = 8  # objects at a time
_DELETES: Final = 4  # pages at a time


class StoredVolume:
    """What is at a location. Whatever its methods are in the middle of when they are cut short, a repeat goes on with
    what is left. They raise what `Bucket` raises.
    """

    def __init__(self, bucket: Bucket[Any], location: Location) -> None:
        self.bucket: Bucket[Any] = bucket
        self.location: Location = location

    # -- what is known of it

    def mark(self) -> dict[str, str]:
        """What volkit knows of the volume; {} for one that it did not make. Raises NotFound where nothing is there."""
        found: dict[str, str] = {}
        if not self.location.prefix:
            tags = self.bucket.tags()
            found = {key.removeprefix(TAG): _plain(tags[key]) for key in tags if key.startswith(TAG)}
        else:
            with suppress(NotFound):
                found = json.loads(self.bucket.get(self.location.mark_key))
        if not found and not self.bucket.has(self.location.begin) and self.location.prefix:
            raise NotFound(f"there is nothing at {self.location.id}")
        return found

    def find(self) -> dict[str, str] | None:
        """The mark of what is there; None where there is nothing, or something that is none of our business."""
        try:
            return self.mark()
        except (NotFound, PermissionDenied):
            return None

    def write_mark(self, mark: Mapping[str, str], tags: Mapping[str, str] = {}) -> None:
        """Have the store keep what volkit knows; `tags` are the user's. Raises FailedPrecondition where it cannot."""
        if self.location.prefix:
            self.bucket.put(self.location.mark_key, json.dumps(dict(mark)).encode())
            return
        wanted = {**self.bucket.tags(), **tags, **{TAG + key: tagged(value) for key, value in mark.items()}}
        with suppress(AlreadyExists):  # of a server that takes every PUT of a bucket for one that makes it
            self.bucket.put_tags(wanted)
        if not wanted.items() <= self.bucket.tags().items():
            raise FailedPrecondition(
                f"the server keeps no tags of bucket {self.location.bucket!r}: use mode: prefix"
            )

    def unmark(self) -> None:
        """Have it be nobody's."""
        if self.location.prefix:
            self.bucket.delete_objects([Object(self.location.mark_key)])
        elif left := self.bucket.tags():
            self.bucket.put_tags({key: value for key, value in left.items() if not key.startswith(TAG)})

    # -- the whole of it

    def make(self) -> None:
        """The bucket, or an object that stands for the directory, as programs that mount a prefix want it. Raises
        AlreadyExists where somebody else has it.
        """
        begin = self.location.begin
        if not begin:
            self.bucket.create()
            return
        self.bucket.put(begin, b"")
        if not self.bucket.has(begin):
            self.bucket.delete_objects([Object(begin)])  # a server on a directory made a file of it

    def remove(self) -> None:
        """The bucket or prefix with all that is in it, and its mark last. Raises InUse."""
        self.purge()
        if self.location.prefix:
            self.unmark()
            return
        try:
            self.bucket.delete()
        except NotFound:
            return
        except FailedPrecondition:
            raise InUse(
                f"bucket {self.location.bucket!r} is still written to: stop its users first"
            ) from None

    def is_empty(self) -> bool:
        """Whether nobody put anything in it, old versions included."""
        begin = self.location.begin
        return not any(one.key != begin for page in self.bucket.versions(begin) for one in page)

    def holds_volumes(self) -> bool:
        """Whether it is a bucket in which others are."""
        return not self.location.prefix and self.bucket.has(RESERVED)

    def purge(self) -> None:
        """Delete all objects, versions and unfinished uploads, some pages at a time, as much as is left of them."""
        pages = iter(self.bucket.versions(self.location.begin))
        with ThreadPoolExecutor(_DELETES) as deletes:
            while some := list(itertools.islice(pages, _DELETES)):
                list(deletes.map(self.bucket.delete_objects, some))
        self.bucket.abort_uploads(self.location.begin)

    def copy_from(self, source: StoredVolume) -> None:
        """Copy every object of another volume of the same server, several at a time."""
        ours, theirs = self.location.begin, source.location.begin

        def copy(key: str) -> None:
            self.bucket.copy(ours + key.removeprefix(theirs), source.bucket, key)

        with ThreadPoolExecutor(_COPIES) as copies:
            for page in source.bucket.pages(theirs):
                list(copies.map(copy, _without_own(source.location, page)))

    def usage(self, most: int) -> Usage:
        """Bytes and objects: as the store counts them, else counted here, up to `most` objects."""
        if not self.location.prefix and (told := self.bucket.usage()):
            return told
        used = number = 0
        for page in self.bucket.pages(self.location.begin, most):
            used, number = used + sum(one.size for one in page), number + len(page)
        return Usage(total=used, used=used, total_inodes=number, used_inodes=number)


def _without_own(location: Location, page: Sequence[Object]) -> Iterator[str]:
    """The keys without what volkit put there."""
    for one in page:
        if one.key != location.begin and (location.prefix or not one.key.startswith(RESERVED)):
            yield one.key


def tagged(text: str) -> str:
    """A text as a tag can hold it: 256 of letters, digits and a few others; a longer one is told by its hash."""
    quoted = quote(text, safe=" +-._:/@").replace("%", "=")
    return quoted if len(quoted) <= 256 else hashlib.sha256(text.encode()).hexdigest()


def _plain(tag: str) -> str:
    return unquote(tag.replace("=", "%"))
