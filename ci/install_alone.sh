#!/usr/bin/env bash
# Builds a wheel of each distribution, installs each alone in a clean environment, and imports it there: what it needs is
# declared, and it pulls in nothing that is not its own (the core no gRPC, a plugin no adapter).
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$PWD/.venv/bin/uv
export UV_LINK_MODE=${UV_LINK_MODE:-copy}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for project in . adapters/* plugins/*; do
    [ -f "$project/pyproject.toml" ] && "$uv" build --quiet --wheel --out-dir "$work/wheels" "$project"
done

install_alone() { # WHEEL
    "$uv" pip install --quiet --python "$work/env/bin/python" --find-links "$work/wheels" \
        --constraint constraints/dev.txt "$1"
}

import_alone() { # DISTRIBUTION [PACKAGE]
    (cd "$work" && env/bin/python -W error - "$@") < ci/import_alone.py
}

for wheel in "$work"/wheels/*.whl; do
    distribution=$(basename "$wheel" | cut -d- -f1 | tr _ -)
    "$uv" venv --quiet --python .venv/bin/python "$work/env"
    install_alone "$wheel"
    import_alone "$distribution"
    if [ "$distribution" = volkit-sdk ]; then
        install_alone "$wheel[testing]"
        import_alone "$distribution" volkit.testing
        install_alone "$wheel[metrics,tracing]"
        (cd "$work" && env/bin/python -W error -c "import volkit.metrics, volkit.tracing")
    fi
    rm -rf "$work/env"
done
