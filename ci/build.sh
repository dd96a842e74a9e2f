#!/usr/bin/env bash
# Builds the sdist and the wheel of each distribution into DIR (dist), the same bytes each time. A wheel that is built from the
# sdist has to be the same too: then the sdist is whole. Of this tree, or of another one: ci/build.sh [DIR [TREE]]
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/../dist}")
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH python=$PWD/.venv/bin/python
cd "${2:-.}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
rm -f "$out"/volkit_*.{whl,tar.gz}

build() { # PROJECT
    local own sdist wheel
    own=$(mktemp -d -p "$work")
    uv build --quiet --no-build-isolation --python "$python" --sdist --wheel --out-dir "$own" "$1"
    sdist=$(ls "$own"/*.tar.gz) wheel=$(basename "$own"/*.whl)
    uv build --quiet --no-build-isolation --python "$python" --wheel --out-dir "$own/again" "$sdist"
    cmp "$own/$wheel" "$own/again/$wheel" || { echo "the sdist of $1 makes another wheel" >&2; return 1; }
    mv "$own/$wheel" "$sdist" "$out"
}

building=()
for project in . adapters/* plugins/*; do
    [ -f "$project/pyproject.toml" ] || continue
    build "$project" &
    building+=($!)
done
failed=0
for one in "${building[@]}"; do wait "$one" || failed=1; done
[ $failed = 0 ]
ls "$out"/volkit_*.whl "$out"/volkit_*.tar.gz
