"""Short stand-ins of texts that are too long, or too odd, for a name."""

from __future__ import annotations

try:  # where hashlib has it from; hashlib itself loads OpenSSL too, in 3 ms that a FlexVolume call has not
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b


def digest(text: str, size: int) -> bytes:
    """`size` bytes (1 to 64) by BLAKE2b: for one text always the same, and no other text's. Of the secrecy of `text`
    nothing is promised.
    """
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size).digest()
