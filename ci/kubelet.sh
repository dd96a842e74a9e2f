#!/usr/bin/env bash
# Drives the FlexVolume driver by Kubernetes' own pkg/volume/flexvolume, with and without attach, directly and by the
# daemon. As root, with Go. Compiling Kubernetes takes minutes the first time, so `make test` leaves it out; its tests
# replay what a real kubelet called instead.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
daemon=
clean() {
    [ -z "$daemon" ] || { kill "$daemon" && wait "$daemon" || true; }
    while read -r _ place _; do [[ $place = "$work"/* ]] && umount "$place"; done < <(tac /proc/mounts) || true
    rm -rf "$work"
}
trap clean EXIT
(cd adapters/flex/tests/kubelet && go test -c -o "$work/kubelet" .)

try() { # MODE ATTACH
    echo "== --mode $1 --attach $2"
    local home=$work/$1-$2
    local flags=(--backend loop -o "pool=$home/pool" --state-dir "$home/state" --node-id node1)
    mkdir -p "$home/pool" "$home/kubelet"
    .venv/bin/volkit-flex install "${flags[@]}" --vendor acme --plugin-dir "$home/exec" --mode "$1" --attach "$2"
    if [ "$1" = daemon ]; then
        .venv/bin/volkit-flex serve "${flags[@]}" --log-level warning &
        daemon=$!
        while ! [ -e "$home/state/flex.run/daemon" ]; do sleep 0.1; done
    fi
    FLEX_PLUGIN_DIR=$home/exec FLEX_ROOT=$home/kubelet FLEX_DRIVER=acme/loop FLEX_FS=xfs FLEX_SIZE=$((320 << 20)) \
        FLEX_GROWN=$((384 << 20)) "$work/kubelet" -test.v
    [ -z "$daemon" ] || { kill "$daemon" && wait "$daemon" || true; }
    daemon=
    ! grep -q "$home" /proc/mounts || { echo "something is still mounted" >&2; exit 1; }
    ! grep -qs "$home" /sys/block/loop*/loop/backing_file || { echo "something is still attached" >&2; exit 1; }
}
for mode in direct daemon; do
    for attach in no yes; do try "$mode" "$attach"; done
done
