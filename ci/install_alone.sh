#!/usr/bin/env bash
# Installs each distribution, and each with each of its extras, alone in a clean environment: what it needs is declared, and it
# pulls in nothing that is not its own (the core no gRPC, a plugin no adapter). With each adapter a driver runs there, and the
# public types of everything are complete. Of the wheels in DIR, beside which an SBOM of each is put then; or they are built.
set -euo pipefail
given=${1:+$(realpath "$1")}
cd "$(dirname "$0")/.."
venv=$PWD/.venv/bin
# Hard links are quick where the cache is on the same file system.
export UV_LINK_MODE=${UV_LINK_MODE:-hardlink} PYRIGHT_PYTHON_GLOBAL_NODE=0 PYRIGHT_PYTHON_IGNORE_WARNINGS=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dist=$work/dist # at another path each time: uv remembers a wheel by its path
mkdir "$dist"
if [ -n "$given" ]; then cp "$given"/volkit_*.whl "$dist"; else ci/build.sh "$dist" >/dev/null; fi

install() { # ENV REQUIREMENT...
    "$venv/uv" venv --quiet --python "$venv/python" "$1"
    local command=("$venv/uv" pip install --quiet --python "$1/bin/python" --find-links "$dist" --constraint constraints/dev.txt)
    # `make venv` has fetched nearly all of it: an index is asked only for the rest
    "${command[@]}" --offline "${@:2}" 2>/dev/null || "${command[@]}" "${@:2}"
}

alone() { # DISTRIBUTION==VERSION [EXTRA]
    local name=${1%==*} version=${1#*==} env
    env=$work/$name${2:+-$2}
    install "$env" "$name${2:+[$2]}==$version"
    (cd "$work" && "$env/bin/python" -W error - "$name" "${@:2}") < ci/import_alone.py
    # one where none is kept: each takes seconds
    if [ -z "${2:-}" ] && [ -n "$given" -o "$name" = volkit-csi ]; then
        sbom "$env/bin/python" "$name" "$dist/$name-$version.cdx.json"
    fi
}

sbom() { # PYTHON DISTRIBUTION FILE
    local project
    project=$(grep -l "^name = \"$2\"" pyproject.toml adapters/*/pyproject.toml plugins/*/pyproject.toml)
    "$venv/cyclonedx-py" environment --output-reproducible --validate --mc-type library \
        --pyproject "$project" --output-file "$3" "$1"
    if grep -F -e "file:" -e "$work" "$3"; then echo "$3 names a place on this machine" >&2; return 1; fi
    [ -z "$given" ] || cp "$3" "$given"
}

drives() { # ADAPTER
    install "$work/with-$1" volkit-loop "volkit-$1"
    if [ "$(id -u)" = 0 ]; then
        env -u PYTHONDONTWRITEBYTECODE "$venv/python" ci/run_installed.py "$work/with-$1" "$1"
    fi
}

typed() { # PACKAGE
    # it looks at the environment whose python comes first
    (cd "$work" && PATH=$work/everything/bin:$PATH "$venv/pyright" --ignoreexternal --verifytypes "$1") > "$work/types-$1" ||
        { sed -n "/^Symbols used/,/^Symbols exported/p" "$work/types-$1"; return 1; }
    echo "$1: $(grep score "$work/types-$1")"
}

failed=0
start() { # COMMAND...: beside others, as many as there are processors
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do finish; done
    "$@" &
}
finish() { wait -n || failed=1; }

all=()
for wheel in "$dist"/volkit_*.whl; do
    IFS=- read -r package version _ <<<"$(basename "$wheel")"
    all+=("${package//_/-}==$version")
done
install "$work/everything" "${all[@]}" "volkit-sdk[etcd,metrics,tracing,testing]"
for one in "${all[@]}"; do
    start alone "$one"
    extras="import importlib.metadata as m; print(*m.metadata('${one%==*}').get_all('Provides-Extra', []))"
    for extra in $("$work/everything/bin/python" -c "$extras"); do start alone "$one" "$extra"; done
    package=${one%==*} package=${package//-/_}
    start typed "${package%_sdk}"
done
for adapter in csi docker flex; do start drives "$adapter"; done
while [ -n "$(jobs -p)" ]; do finish; done
exit $failed
