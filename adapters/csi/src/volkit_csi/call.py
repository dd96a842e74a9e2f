"""`volkit call`: every RPC of a CSI driver as a command, made from the messages' own description.

```console
$ volkit call create-volume --name pvc-1 --size 1Gi --parameter tier=fast --json
```

Exit codes: 0 for OK, 100 and gRPC's number for any other status (105 NOT_FOUND, 114 UNAVAILABLE), 2 for a
wrong command line.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

import volkit
from volkit import AccessMode
from volkit.cli.progress import progress
from volkit_csi.client import METHODS, CallError, Client
from volkit_csi.lean import csi_pb2
from volkit_csi.wire import SECRET_FIELD

Field = Any  # a FieldDescriptor, whose stubs take every part of it for optional

ENDPOINT = "unix:///run/volkit/csi.sock"
EXIT_BASE = 100
_SINGULAR = {"parameters": "parameter", "secrets": "secret", "mutable_parameters": "mutable-parameter"}


def main(argv: Sequence[str]) -> int:
    """Run `volkit call` with the words that follow it; returns the exit code."""
    args = make_parser().parse_args(argv)
    endpoint = getattr(args, "endpoint", "") or os.environ.get("CSI_ENDPOINT", "") or ENDPOINT
    as_json = hasattr(args, "json")
    try:
        request = build(args.method, args)
        client = Client(endpoint, getattr(args, "timeout", 60.0))
    except volkit.InvalidArgument as error:
        print(f"volkit call {args.command}: {error.message}", file=sys.stderr)
        return 2
    from volkit_csi import show

    with client:
        try:
            with progress(args.method):
                answer = client.call(args.method, request)
        except CallError as error:
            show.error(error, endpoint, as_json)
            return EXIT_BASE + error.number
    show.answer(answer, as_json)
    return 0


# -- the command line ----------------------------------------------------------------------------------------


def command_of(method: str) -> str:
    """The command of an RPC: `create-volume` for CreateVolume."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", method).lower()


def make_parser() -> volkit.arguments.Parser:
    """What `volkit call` takes: a command for each RPC, with its fields as flags."""
    common = volkit.arguments.Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument(
        "--endpoint", metavar="URL", help=f"the driver's socket (default: $CSI_ENDPOINT, else {ENDPOINT})"
    )
    common.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="how long to wait for the answer (default: 60)"
    )
    common.add_argument("--json", action="store_true", help="the answer as JSON, an error too")
    parser = volkit.arguments.Parser(
        prog="volkit call",
        description="Call a CSI driver. Exit code: 0, or 100 and gRPC's number.",
        parents=[common],
    )
    commands = parser.add_subparsers(dest="command", metavar="RPC", required=True)
    for method, row in METHODS.items():
        command = commands.add_parser(
            command_of(method), help=f"{row.containing_service.name}.{method}", parents=[common]
        )
        command.set_defaults(method=method)
        for field in row.input_type.fields:
            _kind(field)[0](command, field)
    return parser


def build(method: str, args: argparse.Namespace) -> Any:
    """The request message of an RPC out of parsed arguments. Raises InvalidArgument for a text that cannot be
    read.
    """
    descriptor = METHODS[method].input_type
    request = getattr(csi_pb2, descriptor.name)()
    for field in descriptor.fields:
        _kind(field)[1](request, field, args)
    return request


Add = Callable[[argparse.ArgumentParser, Field], None]
Fill = Callable[[Any, Field, argparse.Namespace], None]


def _kind(field: Field) -> tuple[Add, Fill]:
    """How a field of this type becomes flags, and how these fill it."""
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return _add_scalar, _fill_scalar
    if field.message_type.GetOptions().map_entry:
        return _add_map, _fill_map
    return _MESSAGES[field.message_type.name]


def _flag(field: Field) -> str:
    name: str = field.name
    return "--" + _SINGULAR.get(name, name).replace("_", "-")


def _add_scalar(parser: argparse.ArgumentParser, field: Field) -> None:
    if field.type == FieldDescriptor.TYPE_BOOL:
        parser.add_argument(_flag(field), dest=field.name, action="store_true")
    else:
        number = field.type != FieldDescriptor.TYPE_STRING
        parser.add_argument(
            _flag(field), dest=field.name, metavar="N" if number else "TEXT", type=int if number else str
        )


def _fill_scalar(request: Any, field: Field, args: argparse.Namespace) -> None:
    if (value := getattr(args, field.name)) is not None:
        try:
            setattr(request, field.name, value)
        except ValueError:
            raise volkit.InvalidArgument(f"{_flag(field)}: {value} does not fit into the message") from None


def _add_map(parser: argparse.ArgumentParser, field: Field) -> None:
    secret = field.name == SECRET_FIELD
    parser.add_argument(
        _flag(field),
        dest=field.name,
        action="append",
        default=[],
        metavar="KEY=@/FILE" if secret else "KEY=VALUE",
        help="repeatable; the value is read from the file" if secret else "repeatable",
    )


def _fill_map(request: Any, field: Field, args: argparse.Namespace) -> None:
    secret = field.name == SECRET_FIELD
    for text in getattr(args, field.name):
        key, value = _pair(text, _flag(field))
        if secret:
            if not value.startswith("@/"):  # every user can read the command line
                raise volkit.InvalidArgument(
                    f"{_flag(field)} {key}: write {key}=@/FILE, the value does not belong here"
                )
            try:
                value = Path(value[1:]).read_text(encoding="utf-8").removesuffix("\n")
            except OSError as error:
                raise volkit.InvalidArgument(f"{_flag(field)} {key}: {value[1:]}: {error.strerror}") from None
        getattr(request, field.name)[key] = value


def _pair(text: str, flag: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise volkit.InvalidArgument(f"{flag}: {key!r} has no value: write KEY=VALUE")
    return key, value


# -- messages that have flags of their own -------------------------------------------------------------------


def _add_capacity(parser: argparse.ArgumentParser, field: Field) -> None:
    parser.add_argument("--size", metavar="SIZE", help="at least so much, such as 10Gi, 500M or bytes")
    parser.add_argument("--limit", metavar="SIZE", help="at most so much")


def _fill_capacity(request: Any, field: Field, args: argparse.Namespace) -> None:
    if args.size is not None:
        getattr(request, field.name).required_bytes = volkit.parse_size(args.size)
    if args.limit is not None:
        getattr(request, field.name).limit_bytes = volkit.parse_size(args.limit)


def _add_capability(parser: argparse.ArgumentParser, field: Field) -> None:
    modes = [mode.value for mode in AccessMode]
    parser.add_argument(
        "--access-mode", metavar="MODE", choices=modes, help=f"{modes[0]} (default), {', '.join(modes[1:])}"
    )
    parser.add_argument("--block", action="store_true", help="as a raw block device, not as a file system")
    parser.add_argument("--fs-type", metavar="TYPE", help="the file system, such as ext4 or xfs")
    parser.add_argument("--mount-flag", action="append", default=[], metavar="FLAG", help="repeatable")
    parser.add_argument("--volume-mount-group", metavar="GID", help="a group that must be able to write")


def _fill_capability(request: Any, field: Field, args: argparse.Namespace) -> None:
    mounted = args.fs_type is not None or args.mount_flag or args.volume_mount_group is not None
    if args.block and mounted:
        raise volkit.InvalidArgument(
            "--block goes with none of --fs-type, --mount-flag and --volume-mount-group"
        )
    if not (args.block or mounted or args.access_mode or _required(field)):
        return
    held = getattr(request, field.name)
    capability = held.add() if field.is_repeated else held
    mode = args.access_mode or AccessMode.SINGLE_NODE_WRITER.value
    capability.access_mode.mode = mode.upper().replace("-", "_")
    if args.block:
        capability.block.SetInParent()
        return
    capability.mount.SetInParent()
    capability.mount.fs_type = args.fs_type or ""
    capability.mount.mount_flags.extend(args.mount_flag)
    capability.mount.volume_mount_group = args.volume_mount_group or ""


def _required(field: Field) -> bool:
    """Is a call in vain without it? The specification marks a capability as optional in these three messages
    alone.
    """
    optional = ("GetCapacityRequest", "ControllerExpandVolumeRequest", "NodeExpandVolumeRequest")
    return field.containing_type.name not in optional


def _add_source(parser: argparse.ArgumentParser, field: Field) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--from-snapshot", metavar="ID", help="with the content of this snapshot")
    source.add_argument("--from-volume", metavar="ID", help="with the content of this volume")


def _fill_source(request: Any, field: Field, args: argparse.Namespace) -> None:
    if args.from_snapshot is not None:
        getattr(request, field.name).snapshot.snapshot_id = args.from_snapshot
    if args.from_volume is not None:
        getattr(request, field.name).volume.volume_id = args.from_volume


def _add_requirement(parser: argparse.ArgumentParser, field: Field) -> None:
    for word in ("requisite", "preferred"):
        parser.add_argument(
            f"--{word}", action="append", default=[], metavar="KEY=VALUE[,…]", help="a place; repeatable"
        )


def _fill_requirement(request: Any, field: Field, args: argparse.Namespace) -> None:
    for word in ("requisite", "preferred"):
        for text in getattr(args, word):
            _fill_place(getattr(getattr(request, field.name), word).add(), text, f"--{word}")


def _add_topology(parser: argparse.ArgumentParser, field: Field) -> None:
    parser.add_argument("--topology", metavar="KEY=VALUE[,…]", help="at this place")


def _fill_topology(request: Any, field: Field, args: argparse.Namespace) -> None:
    if args.topology is not None:
        _fill_place(getattr(request, field.name), args.topology, "--topology")


def _fill_place(topology: Any, text: str, flag: str) -> None:
    topology.segments.update(_pair(segment, flag) for segment in text.split(","))


_MESSAGES: dict[str, tuple[Add, Fill]] = {
    "CapacityRange": (_add_capacity, _fill_capacity),
    "VolumeCapability": (_add_capability, _fill_capability),
    "VolumeContentSource": (_add_source, _fill_source),
    "TopologyRequirement": (_add_requirement, _fill_requirement),
    "Topology": (_add_topology, _fill_topology),
}
"""Every message that a request holds; a new one in the specification fails the test that builds all commands.
"""
