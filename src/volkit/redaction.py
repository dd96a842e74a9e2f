"""Texts without the secrets in them, however a library has spelled them.

A secret is found as it is, as in a repr or a JSON text, percent-encoded, in HTML, in base64 (also in the middle of
it, as in `Basic` credentials) and in hexadecimal; with other whitespace, as in an indented traceback; and one of
several lines also line by line. What was cut, hashed or split by a program is beyond it.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

MASK = "***"

_FEWEST = 4
"""Spellings that a short secret shares with half of all texts (its base64, say) are looked for from this many
characters on; as it is, in JSON or in a URL it is hidden however short, since a short password is one."""

_PASSES = 8  # of one escape inside another
_HEX = "[0-9a-fA-F]"
_ESCAPE = re.compile(
    r"(?=[\\%&+]|\s\s|[^\S ])(?:"  # where one can begin: ten times as fast
    rf"(?P<byte>(?:\\+x{_HEX}{{2}})+)|(?P<unit>(?:\\+u{_HEX}{{4}})+)|\\+U(?P<code>000{_HEX}{{5}}|0010{_HEX}{{4}})"
    r"|(?P<blank>\\+[nrtfv]|\s{2,}|[^\S ]|\+)|(?P<bell>\\+b)|(?P<back>\\+)"
    rf"|(?P<percent>(?:%{_HEX}{{2}})+)|(?P<entity>&(?:amp|lt|gt|quot|apos|\#[0-9]{{1,7}}|\#[xX]{_HEX}{{1,6}});))"
)
_TELLING = re.compile("pass|pwd|secret|token|key|cred|auth", re.IGNORECASE)


def redact(text: str, *secrets: str) -> str:
    """`text` with `***` for each of `secrets`, in any of its spellings; what touches or overlaps is one `***`."""
    wanted = set(filter(None, secrets))
    spans = [span for secret in wanted for one in _spellings(secret) for span in _occurrences(text, one)]
    if wanted and text:
        spans += _decoded_occurrences(text, wanted)
    shown, at = [], 0
    for begin, end in _united(spans):
        shown += [text[at:begin], MASK]
        at = end
    return "".join((*shown, text[at:]))


def flag_secrets(flags: Iterable[str]) -> Iterator[str]:
    """What may be secret in mount flags: the values (`password=…`), short ones (`vers=3`) only where their key says
    so. A flag may hold several words between commas.
    """
    for flag in flags:
        for word in {flag, *flag.split(",")}:
            key, _, value = word.partition("=")
            if len(value) >= _FEWEST or _TELLING.search(key):
                yield value


def named_secrets(flags: Iterable[str]) -> list[str]:
    """The keys of mount flags whose value their key calls a secret (`password=…`), and which is not a file's path."""
    words = (word.partition("=") for flag in flags for word in flag.split(","))
    return [key for key, _, value in words if _TELLING.search(key) and value and not value.startswith("/")]


def plain_flags(flags: Iterable[str]) -> list[str]:
    """The flags, of those with a value that may be secret the key alone (`password=`): fit to be kept and compared."""
    return [f"{flag.partition('=')[0]}=" if any(flag_secrets((flag,))) else flag for flag in flags]


def _spellings(secret: str) -> set[str]:
    lines = [line.strip() for line in secret.splitlines() or [secret]]
    whole = {secret, secret.strip(), *(line for line in lines if len(line) >= _FEWEST)}
    found = set(whole)
    for one in whole:
        found |= {repr(one)[1:-1], ascii(one)[1:-1], json.dumps(one)[1:-1], html.escape(one)}
        raw = one.encode("utf-8", "surrogatepass")
        found.add(repr(raw)[2:-1])
        for encoded in (quote(raw), quote(raw, safe=""), quote_plus(raw)):
            found |= {encoded, re.sub("%..", lambda code: code[0].lower(), encoded)}
        found |= {spelling for spelling in _armoured(raw) if len(spelling) >= _FEWEST}
    return found - {""}


def _armoured(raw: bytes) -> Iterator[str]:
    """In hexadecimal and in base64: by itself, and as part of a longer text in each of the three places it can have."""
    if len(raw) >= _FEWEST:
        yield from (raw.hex(), raw.hex().upper())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(raw).decode().rstrip("=")
        for shift, first in ((0, 0), (1, 2), (2, 3)):
            yield encode(b"\0" * shift + raw).decode()[first : (shift + len(raw)) * 8 // 6]


def _occurrences(text: str, part: str) -> Iterator[tuple[int, int]]:
    at = text.find(part)
    while at >= 0:
        yield at, at + len(part)
        at = text.find(part, at + 1)


def _decoded_occurrences(text: str, secrets: set[str]) -> Iterator[tuple[int, int]]:
    """Where a secret is in `text` once the escapes of both are undone."""
    plain, begins, ends = _decoded(text)
    for secret in secrets:
        part = _decoded(secret)[0].strip()
        shortest = (
            0 if len(part) >= _FEWEST else len(secret)
        )  # of `&lt;` only an escaped spelling is one, not each `<`
        for begin, end in _occurrences(plain, part) if part else ():
            if ends[end - 1] - begins[begin] >= shortest:
                yield begins[begin], ends[end - 1]


def _decoded(text: str) -> tuple[str, list[int], list[int]]:
    """`text` without escapes and with single blanks; for each character, where its spelling begins and ends."""
    begins, ends = list(range(len(text))), list(range(1, len(text) + 1))
    for _ in range(_PASSES):
        pieces: list[str] = []
        new_begins: list[int] = []
        new_ends: list[int] = []
        at = 0
        for found in _ESCAPE.finditer(text):
            start, stop = found.span()
            meant = _meant(found)
            pieces += [text[at:start], meant]
            new_begins += begins[at:start] + [begins[start]] * len(meant)
            new_ends += ends[at:start] + [ends[stop - 1]] * len(meant)
            at = stop
        decoded = "".join((*pieces, text[at:]))
        if decoded == text:
            break
        text, begins, ends = decoded, new_begins + begins[at:], new_ends + ends[at:]
    return text, begins, ends


def _meant(found: re.Match[str]) -> str:
    """What an escape stands for."""
    kind, text = found.lastgroup, found[0]
    match kind:
        case "blank":
            return " "
        case "bell":
            return "\b"
        case "back":  # how many there are says only how often it was escaped
            return ""
        case "code":
            return chr(int(found["code"], 16))
        case "entity":
            return html.unescape(text)
        case "unit":
            units = b"".join(int(one, 16).to_bytes(2, "big") for one in re.findall(r"u(.{4})", text))
            return units.decode("utf-16-be", "surrogatepass")
    raw = bytes.fromhex("".join(re.findall(r"[x%](..)", text)))
    try:
        return raw.decode()
    except UnicodeDecodeError:  # the repr of a text, not of bytes
        return raw.decode("latin-1")


def _united(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in order, those that touch or overlap made one."""
    united: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if united and begin <= united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        else:
            united.append((begin, end))
    return united
