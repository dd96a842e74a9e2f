#!/usr/bin/env bash
# Writes constraints/dev.txt: the exact versions that `make venv` installs. Run it after a change of dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-emit-index-url --no-annotate --no-header \
    --no-emit-package volkit-sdk --group dev pyproject.toml adapters/*/pyproject.toml plugins/*/pyproject.toml \
    --output-file constraints/dev.txt
