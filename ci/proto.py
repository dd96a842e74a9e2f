"""Compiles the CSI wire definition into the modules that are committed beside it.

`python ci/proto.py` writes them; `python ci/proto.py --check` writes nothing and exits with 1 where they are
not current. The modules carry the version of the protobuf that made them and refuse an older runtime, so what
volkit-csi requires of protobuf (its pyproject.toml) must not start below it: that is checked too.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.message import Message

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = ROOT / "adapters/csi"
SOURCE = ADAPTER / "src"
PROTO = "volkit_csi/wire/csi.proto"  # also the file's name in the descriptors that reflection serves
MADE = (PROTO.replace(".proto", "_pb2.py"), PROTO.replace(".proto", "_pb2.pyi"))


def compiled() -> dict[str, str]:
    """The text of every module in `MADE`, by its path below the source directory, as protoc makes it."""
    with tempfile.TemporaryDirectory() as out:
        descriptors = Path(out) / "descriptors"
        descriptors.write_bytes(lean(described()))
        protoc(f"--descriptor_set_in={descriptors}", f"--python_out={out}", f"--pyi_out={out}", PROTO)
        return {name: whole((Path(out) / name).read_text(encoding="utf-8")) for name in MADE}


def whole(text: str) -> str:
    """A compiled module or stub with the type arguments that protoc leaves out: an unknown type is none for users."""
    text = text.replace("_Mapping]", "_Mapping[str, _Any]]")
    return text.replace("from typing import ClassVar", "from typing import Any as _Any, ClassVar", 1)


def described() -> bytes:
    """The complete descriptors of the wire and of what it imports (a serialized FileDescriptorSet)."""
    import grpc_tools

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as out:
        descriptors = Path(out) / "descriptors"
        protoc(
            f"-I{SOURCE}",
            f"-I{well_known}",
            "--include_imports",
            f"--descriptor_set_out={descriptors}",
            PROTO,
        )
        return descriptors.read_bytes()


def lean(descriptors: bytes) -> bytes:
    """The same descriptors without the wire's own markers (csi_secret, alpha_*).

    They are no part of a message's encoding, and to import what defines them (descriptor.proto) costs every
    driver 4 MiB and 30 ms. What is secret is known by name: see volkit_csi.wire.
    """
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    files = FileDescriptorSet.FromString(descriptors)
    for file in files.file:
        if file.name == PROTO:
            file.dependency.remove("google/protobuf/descriptor.proto")
            del file.extension[:]
            strip(file)
    return files.SerializeToString()


def strip(message: Message) -> None:
    """Clear the options of every descriptor inside `message`, except the mark of a map's entries."""
    for field, value in message.ListFields():
        if field.name == "options":
            if not getattr(value, "map_entry", False):
                message.ClearField("options")
        elif field.message_type is not None:
            for each in value if field.is_repeated else (value,):
                strip(each)


def protoc(*arguments: str) -> None:
    from grpc_tools import protoc as compiler

    if compiler.main(["protoc", *arguments]) != 0:
        raise SystemExit(f"protoc does not compile {PROTO}")


def faults() -> list[str]:
    """What is not current, a sentence each."""
    found = []
    for name, text in compiled().items():
        path = SOURCE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            found.append(
                f"{path.relative_to(ROOT)} is not what {PROTO} compiles to: run `python ci/proto.py`"
            )
    made_by, floor = gencode_version(), required_protobuf()
    if floor < made_by:
        found.append(
            f"{ADAPTER.relative_to(ROOT)}/pyproject.toml allows protobuf {dotted(floor)}, but the compiled "
            f"modules need {dotted(made_by)} or newer: raise it"
        )
    return found


def gencode_version() -> tuple[int, ...]:
    """The version that the committed module was made by and will demand of the runtime."""
    text = (SOURCE / MADE[0]).read_text(encoding="utf-8")
    match = re.search(r"ValidateProtobufRuntimeVersion\(\s*\S+,\s*(\d+),\s*(\d+),\s*(\d+)", text)
    if match is None:
        raise SystemExit(f"{MADE[0]} states no protobuf version: was it compiled by protoc?")
    return tuple(int(number) for number in match.groups())


def required_protobuf() -> tuple[int, ...]:
    """The oldest protobuf that volkit-csi may be installed with."""
    project = tomllib.loads((ADAPTER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = next(entry for entry in project["dependencies"] if re.match(r"protobuf\b", entry))
    match = re.search(r">=\s*([\d.]+)", wanted)
    if match is None:
        raise SystemExit(f"{wanted!r} in adapters/csi/pyproject.toml has no lower bound")
    numbers = [int(number) for number in match[1].split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the CSI wire definition.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a module is not current"
    )
    if not parser.parse_args().check:
        for name, text in compiled().items():
            (SOURCE / name).write_text(text, encoding="utf-8")
    found = faults()
    print("\n".join(found) or "the CSI wire modules are current", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
