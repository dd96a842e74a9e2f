"""What a vendor writes of an object store: one bucket, by the store's own SDK."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from attrs import frozen

from volkit.credentials import AccessKey
from volkit.errors import FailedPrecondition
from volkit.model import Usage
from volkit.objects.options import ObjectParameters, ObjectSettings

S = TypeVar("S", bound=ObjectSettings)


@frozen
class Object:
    """An object, or a version of one: `size` in bytes, `version` "" where the store keeps none."""

    key: str
    size: int = 0
    version: str = ""


class Bucket(ABC, Generic[S]):
    """A bucket as `key` may see it; it need not exist yet. Kept by nobody: what is dear to make, such as a client, is
    the vendor's to keep. Its methods may be called from several threads.

    All of them raise NotFound where there is no such bucket, PermissionDenied, Unauthenticated, and Unavailable where
    the store does not answer; errors name neither keys nor what was sent.
    """

    def __init__(self, settings: S, name: str, endpoint: str, key: AccessKey | None) -> None:
        """`endpoint` is the server's URL, "" for the vendor's own; `key` None where the SDK finds one."""
        self.settings: S = settings
        self.name: str = name
        self.endpoint: str = endpoint
        self.key: AccessKey | None = key

    @classmethod
    @abstractmethod
    def names(cls, settings: S, endpoint: str, key: AccessKey | None) -> Iterable[str]:
        """The names of all buckets of this key's owner."""

    @abstractmethod
    def create(self) -> None:
        """Raises AlreadyExists where somebody else has the name, Aborted where it was made in the same moment."""

    @abstractmethod
    def delete(self) -> None:
        """Raises FailedPrecondition where there is something in it."""

    @abstractmethod
    def tags(self) -> Mapping[str, str]:
        """{} where the store keeps none. Raises NotFound."""

    @abstractmethod
    def put_tags(self, tags: Mapping[str, str]) -> None:
        """Have it these and no others. One that the store cannot keep may be left out: it is looked at again."""

    @abstractmethod
    def has(self, begin: str) -> bool:
        """Whether an object's key begins so, by one request."""

    @abstractmethod
    def pages(self, begin: str, most: int | None = None) -> Iterator[Sequence[Object]]:
        """The objects whose keys begin so, at most so many, some at a time."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """A small object's content. Raises NotFound."""

    @abstractmethod
    def put(self, key: str, content: bytes) -> None:
        """Have a small object with this content."""

    @abstractmethod
    def copy(self, key: str, source: Bucket[Any], source_key: str) -> None:
        """Copy an object of any size of a bucket on the same server, without its bytes passing through here."""

    @abstractmethod
    def delete_objects(self, objects: Sequence[Object]) -> None:
        """Delete a page of objects, with their versions. One that is not there counts as done."""

    def versions(self, begin: str) -> Iterator[Sequence[Object]]:
        """As `pages`, with all old versions and marks of deletion. The default is of a store that has none."""
        return self.pages(begin)

    def abort_uploads(self, begin: str) -> None:
        """Give up the unfinished uploads of such keys. The default is of a store that has none."""

    def configure(self, parameters: ObjectParameters) -> None:
        """Have a new bucket do by itself what the backend's own parameters ask for. To repeat it does no harm."""

    def modify(self, fields: Mapping[str, Any]) -> None:
        """Change what can be changed later of the backend's own parameters. Raises FailedPrecondition."""
        raise FailedPrecondition(f"{', '.join(fields)} cannot be changed of bucket {self.name!r}")

    def usage(self) -> Usage | None:
        """What the store says of the whole bucket; None where it does not, and its objects are counted."""
        return None

    def mount_values(self) -> Mapping[str, Any]:
        """What `volkit.host.mounters.BucketMount` is to be told beside the common things: `region`, `path_style`, …"""
        return {}

    def mount_key(self) -> AccessKey | None:
        """The key as a program can be given it; None where it has to find its own, which changes (a role's)."""
        return self.key
