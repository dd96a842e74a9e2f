"""The CSI wire: `csi.proto`, and what `ci/proto.py` compiles it to (`csi_pb2`)."""

from __future__ import annotations

SECRET_FIELD = "secrets"
"""The name of every field that csi.proto marks csi_secret, and of no other. Mount flags may hold secrets."""
