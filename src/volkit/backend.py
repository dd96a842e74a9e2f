"""A backend: the name a vendor's storage goes by, and the classes that make it up.

```python
class Acme(Backend[AcmeSettings, AcmeParameters]):
    name = "acme"
    settings = AcmeSettings        # the operator's: endpoints, pools (`-o endpoint=…`)
    parameters = AcmeParameters    # per volume: StorageClass parameters, Flex options, Docker opts
    controller = AcmeController
    node = AcmeNode
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import attrs
from attrs import field, frozen

from volkit.interfaces import Controller, Mixin, Node
from volkit.model import MAX_BYTES, AccessMode, BlockVolume, Value, Volume, _tuple
from volkit.operations import OPERATIONS, Operation
from volkit.options import NoOptions, declared

S = TypeVar("S")
P = TypeVar("P")

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}[a-z0-9]", re.ASCII)
GIB = 1024**3


def _modes(modes: Iterable[AccessMode]) -> frozenset[AccessMode]:
    return frozenset(modes)


@frozen(kw_only=True, eq=False, repr=False)
class Limits(Value):
    """What every volume of a backend has in common; the engine refuses the rest before the backend is asked.

    Sizes in bytes. `default_size` is made where nothing is required. `fs_types` are what volkit may make on
    its block volumes, the first by default. `access_modes` leaves out what the storage cannot do. `mount_flags` are
    the options that a user may mount with, by their key; None leaves it to the kernel.
    """

    min_size: int = 1
    max_size: int = MAX_BYTES
    default_size: int = GIB
    granularity: int = 1
    fs_types: tuple[str, ...] = field(default=("ext4", "xfs", "btrfs", "ext3"), converter=_tuple)
    access_modes: frozenset[AccessMode] = field(default=frozenset(AccessMode), converter=_modes)
    mount_flags: frozenset[str] | None = None


@frozen(kw_only=True, eq=False, repr=False)
class Needs(Value):
    """What a backend needs of a platform it is deployed on, beyond what its classes tell: read by `volkit deploy`.

    `node_local`: a volume lives on the node that makes it, so every node makes its own. `host_paths` names the settings
    that are directories of the node. `host_network`: nodes reach the storage from the host's network, as iSCSI and NFS
    in the kernel do (None: where the volumes are files or objects and not on the node). `packages` are the Debian
    packages of the programs that its node runs, beside those that make and check file systems. `token_audiences`:
    tokens of the pod's service account are handed to each publish, one for each audience. `selinux_mount`: its volumes
    take the mount option `context=`, so that kubelet need not relabel every file.
    """

    node_local: bool = False
    host_paths: tuple[str, ...] = field(default=(), converter=_tuple)
    host_network: bool | None = None
    packages: tuple[str, ...] = field(default=(), converter=_tuple)
    token_audiences: tuple[str, ...] = field(default=(), converter=_tuple)
    selinux_mount: bool = False


class Backend(Generic[S, P]):
    """Names the classes. Never instantiated; volkit makes the controller and the node, where it needs them.

    `volume` is the kind that every volume has; a backend with several kinds overrides `kind`. A backend
    without a `controller` serves volumes that an administrator made.
    """

    name: ClassVar[str] = ""
    settings: ClassVar[type] = NoOptions
    parameters: ClassVar[type] = NoOptions
    controller: ClassVar[type[Controller[Any, Any]] | None] = None
    node: ClassVar[type[Node[Any]] | None] = None
    volume: ClassVar[type[Volume]] = BlockVolume
    limits: ClassVar[Limits] = Limits()
    needs: ClassVar[Needs] = Needs()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not _NAME.fullmatch(cls.name):
            raise TypeError(
                f"{cls.__name__}.name is {cls.name!r}: give 2 to 32 of a-z, 0-9 and -, beginning with a letter"
            )
        for role in ("settings", "parameters"):
            options = getattr(cls, role)
            if not (isinstance(options, type) and attrs.has(options) and _is_frozen(options)):
                raise TypeError(
                    f"{cls.__name__}.{role} is not a frozen attrs class: decorate it with @attrs.frozen"
                )
            declared(options)
        fields = {one.field for one in declared(cls.settings)}
        if strange := sorted(set(cls.needs.host_paths) - fields):
            raise TypeError(
                f"{cls.__name__}.needs.host_paths names {strange[0]!r}, which is none of its settings"
            )
        if cls.controller is None and cls.node is None:
            raise TypeError(f"{cls.__name__} has neither a controller nor a node: name at least one")
        for role, base in (("controller", Controller), ("node", Node)):
            named = getattr(cls, role)
            if named is not None and not (isinstance(named, type) and issubclass(named, base)):
                raise TypeError(
                    f"{cls.__name__}.{role} is {named!r}: name a subclass of volkit.{base.__name__}"
                )

    @classmethod
    def controller_class(cls, settings: S) -> type[Controller[S, P]] | None:
        """The controller's class; override it where capabilities depend on the installation."""
        return cls.controller

    @classmethod
    def node_class(cls, settings: S) -> type[Node[S]] | None:
        """The node's class; override it where its capabilities (`ConnectsPerPod`) depend on the installation."""
        return cls.node

    @classmethod
    def default_volume(cls, settings: S) -> str:
        """The id of the volume that is meant where a user names none and asks for none to be made (FlexVolume); ""
        where a volume has to be named.
        """
        return ""

    @classmethod
    def kind(cls, parameters: P) -> type[Volume]:
        """The kind of volume that these parameters make, known before anything is made."""
        return cls.volume

    @classmethod
    def witness(cls, settings: S) -> Any:
        """Who looks at the storage without the driver, for `volkit check`: a `volkit.testing.Witness`, imported here.
        None leaves it to the backend's own listing.
        """
        return None

    @classmethod
    def describe(cls) -> Mapping[str, Any]:
        """Name, first line of the docstring, operations and options: what `volkit backends` and the docs
        show.
        """
        return {
            "name": cls.name,
            "summary": (cls.__doc__ or "").strip().partition("\n")[0],
            "kind": cls.volume.kind,
            "operations": [one.name for one in supported(cls.controller, cls.node)],
            "capabilities": sorted(mixins(cls.controller) | mixins(cls.node)),
        }


def _is_frozen(cls: type) -> bool:
    """Asked by trying: `@attrs.define` with a converter has a `__setattr__` of its own, too."""
    try:
        object.__new__(cls).__setattr__("name", None)
    except attrs.exceptions.FrozenInstanceError:
        return True
    except Exception:
        return False
    return False


def mixins(cls: type | None) -> frozenset[str]:
    """The names of the capability mixins a class inherits."""
    bases = cls.__mro__ if cls else ()
    return frozenset(
        base.__name__
        for base in bases
        if issubclass(base, Mixin) and base is not Mixin and Mixin in base.__bases__
    )


def supported(controller: type | None, node: type | None) -> tuple[Operation, ...]:
    """The rows of the table that a backend of these classes can serve."""
    sides = {"controller": controller, "node": node}
    return tuple(one for one in OPERATIONS.values() if one.served_by(sides[one.side]))
