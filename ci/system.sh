#!/usr/bin/env bash
# Installs what the tests need of the system: Debian packages where this runs as root, and csi-sanity, helm and kustomize where Go is.
set -euo pipefail
cd "$(dirname "$0")/.."

CSI_SANITY=v5.5.0 # the newest release that is built on CSI v1.12, the version volkit serves
HELM=v3.19.0
KUSTOMIZE=v5.7.1

declare -A package=(
    [mkfs.ext4]=e2fsprogs [mkfs.xfs]=xfsprogs [mkfs.btrfs]=btrfs-progs [udevadm]=udev [losetup]=mount [blkid]=util-linux
    [fsfreeze]=util-linux [etcd]=etcd-server [etcdctl]=etcd-client [openssl]=openssl [bindfs]=bindfs
    [s3fs]=s3fs [fusermount3]=fuse3 [ceph]=ceph-common [ceph-mon]=ceph-mon [ceph-osd]=ceph-osd [radosgw]=radosgw
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

# install PROGRAM VERSION MODULE: by Go, where it is not there in this version (another one would be believed)
install() {
    [ -x ".venv/bin/$1" ] && [ "$(cat ".venv/.$1" 2>/dev/null)" = "$2" ] && return
    rm -f ".venv/bin/$1"
    if command -v go >/dev/null && GOBIN=$PWD/.venv/bin go install "$3@$2"; then
        echo "$2" > ".venv/.$1"
    else
        echo "the tests that take $1 will be skipped: it is built by Go" >&2
    fi
}
install csi-sanity "$CSI_SANITY" github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity
install helm "$HELM" helm.sh/helm/v3/cmd/helm
install kustomize "$KUSTOMIZE" sigs.k8s.io/kustomize/kustomize/v5
