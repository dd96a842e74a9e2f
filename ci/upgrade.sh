#!/usr/bin/env bash
# Upgrades every driver from the version REF of this repository to this tree while volumes are mounted, and rolls it back:
# wheels of both are built, installed, and run. Without REF, from this tree to what stands for the next version: a copy of the
# tree with a higher version number, whose journal has been through one migration more.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD uv=$PWD/.venv/bin/uv
export UV_LINK_MODE=${UV_LINK_MODE:-hardlink}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tree"
if [ -n "${1:-}" ]; then
    git archive "$1" | tar -x -C "$work/tree"
    old=$work/tree new=$root
else
    git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from - | tar -x -C "$work/tree"
    old=$root new=$work/tree
    "$new/ci/version.sh" 999.0.0 >/dev/null
    cat >> "$new/src/volkit/journal/sqlite.py" <<'PYTHON'
MIGRATIONS = (*MIGRATIONS, "ALTER TABLE record ADD COLUMN later TEXT NOT NULL DEFAULT ''")
PYTHON
fi

adapters=()
for adapter in csi docker flex; do
    if [ -e "$old/adapters/$adapter/pyproject.toml" ]; then adapters+=("$adapter"); fi
done

put() { # ENV TREE
    ci/build.sh "$work/dist-$1" "$2" >/dev/null
    "$uv" venv --quiet --python .venv/bin/python "$work/$1"
    local command=("$uv" pip install --quiet --python "$work/$1/bin/python" --constraint constraints/dev.txt)
    command+=("$work/dist-$1"/volkit_{sdk,loop}-*.whl)
    for adapter in "${adapters[@]}"; do command+=("$work/dist-$1/volkit_$adapter"-*.whl); done
    # `make venv` has fetched nearly all of it: an index is asked only for the rest
    "${command[@]}" --offline 2>/dev/null || "${command[@]}"
}
put old "$old"
put new "$new"
unset PYTHONDONTWRITEBYTECODE
for adapter in "${adapters[@]}"; do
    .venv/bin/python ci/run_installed.py "$work/old" "$adapter" --newer "$work/new" &
done
failed=0
while [ -n "$(jobs -p)" ]; do wait -n || failed=1; done
exit $failed
