#!/usr/bin/env bash
# Installs what the tests need of the system: Debian packages where this runs as root, and csi-sanity where Go is.
set -euo pipefail
cd "$(dirname "$0")/.."

CSI_SANITY=v5.5.0 # the newest release that is built on CSI v1.12, the version volkit serves

declare -A package=(
    [mkfs.ext4]=e2fsprogs [mkfs.xfs]=xfsprogs [mkfs.btrfs]=btrfs-progs [udevadm]=udev [losetup]=mount [blkid]=util-linux
    [fsfreeze]=util-linux [etcd]=etcd-server [etcdctl]=etcd-client [openssl]=openssl [bindfs]=bindfs
    [dockerd]=docker.io [busybox]=busybox-static [podman]=podman [runc]=runc
)
missing=()
for program in "${!package[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq </dev/null
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
    else
        echo "Some tests will be skipped; to run them all, as root: apt-get install ${missing[*]}" >&2
    fi
fi

module=github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@$CSI_SANITY
if ! [ -x .venv/bin/csi-sanity ] || ! [ "$(cat .venv/.csi-sanity 2>/dev/null)" = "$CSI_SANITY" ]; then
    rm -f .venv/bin/csi-sanity # of another version, it would be believed
    if command -v go >/dev/null && GOBIN=$PWD/.venv/bin go install "$module"; then
        echo "$CSI_SANITY" > .venv/.csi-sanity
    else
        echo "csi-sanity's tests will be skipped: it is built by Go 1.23 or newer" >&2
    fi
fi
