#!/usr/bin/env bash
# Gives all distributions another version, which they have in common: ci/version.sh 0.2.0
set -euo pipefail
cd "$(dirname "$0")/.."

[[ ${1:-} =~ ^[0-9]+\.[0-9]+\.[0-9]+(rc[0-9]+)?$ ]] || { echo "usage: ci/version.sh MAJOR.MINOR.PATCH[rcN]" >&2; exit 2; }
old=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -1)
sed -i "s/^version = \"${old//./\\.}\"$/version = \"$1\"/; s/\"volkit-sdk==${old//./\\.}\"/\"volkit-sdk==$1\"/" \
    pyproject.toml adapters/*/pyproject.toml plugins/*/pyproject.toml
sed -i "s/^__version__ = \"${old//./\\.}\"$/__version__ = \"$1\"/" src/volkit/__init__.py
echo "$old -> $1: run \`make venv\`, which installs it"
