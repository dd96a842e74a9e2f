"""A driver's answer for people and for machines: `plain` values, as JSON or as lines and tables."""

from __future__ import annotations

import json
import sys
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from volkit import format_size
from volkit_csi.client import CallError


def plain(message: Message) -> Any:
    """A message as dicts, lists and scalars under the wire's field names.

    Sizes are numbers, enums their names, times ISO 8601 in UTC, wrapped values as they are. A message that is
    not set is left out, a scalar that is not set has its zero.
    """
    kind = message.DESCRIPTOR.full_name
    if kind == "google.protobuf.Timestamp":
        return message.ToJsonString()  # type: ignore[attr-defined]
    if kind.startswith("google.protobuf."):
        return message.value  # type: ignore[attr-defined]
    fields: dict[str, Any] = {}
    for field in cast("list[Any]", message.DESCRIPTOR.fields):
        value = getattr(message, field.name)
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
            fields[field.name] = dict(value)
        elif field.is_repeated:
            fields[field.name] = [_value(field, one) for one in value]
        elif not field.has_presence or message.HasField(field.name):
            fields[field.name] = _value(field, value)
    return fields


def _value(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return plain(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        found = field.enum_type.values_by_number.get(value)
        return found.name if found else value
    return value


def answer(message: Message, as_json: bool) -> None:
    """Print an answer to stdout."""
    values = plain(message)
    if as_json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    entries = next((value for value in values.values() if isinstance(value, list)), None)
    if entries and all(isinstance(entry, dict) for entry in entries):
        _table(console, [dict(_flat(entry)) for entry in entries])
        values = {key: value for key, value in values.items() if value and value is not entries}
    for key, value in _flat(values):
        console.print(f"{key}: {value}", markup=False)
    if not entries and not values:
        console.print("OK")


def error(refused: CallError, endpoint: str, as_json: bool) -> None:
    """Print why a call failed: JSON to stdout, a sentence to stderr."""
    if as_json:
        fields = {"code": refused.code, "number": refused.number, "message": refused.message}
        print(json.dumps({"error": fields}, indent=2, ensure_ascii=False))
        return
    where = f" (driver at {endpoint})" if refused.code == "UNAVAILABLE" else ""
    print(f"{refused.method}: {refused.code}: {refused.message}{where}", file=sys.stderr)


def _flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as lines: `volume.volume_id`, and maps as `key=value, …`."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict) and (not value or all(isinstance(one, str) for one in value.values())):
            if text := ", ".join(f"{name}={one}" for name, one in value.items()):
                lines.append((prefix + key, text))
        elif isinstance(value, dict):
            lines += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            if value:
                lines.append((prefix + key, "; ".join(_word(one) for one in value)))
        elif value not in ("", None):
            size = key.endswith(("_bytes", "_capacity"))
            lines.append((prefix + key, format_size(value) if size else _word(value)))
    return lines


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}={text}" for name, text in _flat(value))
    return str(value)


def _table(console: Any, rows: list[dict[str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (headings := list(dict.fromkeys(key for row in rows for key in row))):
        table.add_column(heading.rpartition(".")[2], overflow="fold")
    for row in rows:
        table.add_row(*(Text(row.get(heading, "")) for heading in headings))
    console.print(table, soft_wrap=False)
