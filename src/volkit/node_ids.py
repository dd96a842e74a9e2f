"""A node's id on the wire, which carries what the node knows of itself to a controller that never sees it:
`n1?iqn=…&wwn=…`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import parse_qsl, urlencode

from volkit.errors import FailedPrecondition, InvalidArgument, quoted

MAX_BYTES = 256
"""CSI spec, NodeGetInfoResponse.node_id."""


def encode_node_id(name: str, facts: Mapping[str, str]) -> str:
    """The node's name, with its facts behind a `?` where there are any. Raises FailedPrecondition beyond 256
    bytes, InvalidArgument for what is not Unicode text.
    """
    if "?" in name:
        raise InvalidArgument(f"node id {quoted(name)} must not contain '?'")
    try:
        text = _joined(name, facts)
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"node id {quoted(name)} and its facts are not Unicode text") from None
    if size > MAX_BYTES:
        raise FailedPrecondition(
            f"node id {quoted(name)} and its facts ({', '.join(sorted(facts))}) take more than {MAX_BYTES} bytes"
        )
    return text


def decode_node_id(text: str) -> tuple[str, dict[str, str]]:
    """(name, facts) of what `encode_node_id` made; any other text is a name without facts."""
    name, _, query = text.partition("?")
    facts = dict(parse_qsl(query, keep_blank_values=True))
    with suppress(UnicodeEncodeError):  # not Unicode text, so not made by `encode_node_id`
        if facts and _joined(name, facts) == text:
            return name, facts
    return text, {}


def _joined(name: str, facts: Mapping[str, str]) -> str:
    return f"{name}?{urlencode(sorted(facts.items()), safe=':/')}" if facts else name
