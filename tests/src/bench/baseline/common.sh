# shellcheck shell=bash
# What the baseline's steps share. RUN (on a tmpfs) and DISK are this host's directories; OWN and PEER the addresses of this
# host and the other one; ADDRESS and MAC the container's.
set -euo pipefail
export LC_ALL=C

# shellcheck disable=SC2034 # the steps use them
NAME=redis LINK=be-redis PORT=8730

# stamp NAME: what has just been done, and when
stamp() { printf 'stamp %s %s\n' "$1" "$EPOCHREALTIME"; }

runc() { command runc --root "$RUN/runc" --log "$RUN/runc.log" "$@" </dev/null >/dev/null 2>&1; }

explain() {
    local status=$?
    if [ "$status" != 0 ]; then
        tail -n 5 "$RUN/runc.log" "$RUN"/work/*.log >&2 || true
    fi
}
trap explain EXIT

mount_rootfs() {
    mount -t overlay -o "lowerdir=$DISK/lower,upperdir=$DISK/upper,workdir=$DISK/work" be-rootfs "$RUN/rootfs"
}

# The container's frames come from this host from now on.
attach() {
    ip link set "$LINK" master br0
    # The restored sockets have asked for their neighbours while the link was off, and would wait a second for an answer.
    ip -n "$LINK" neigh flush dev eth0
    ip netns exec "$LINK" busybox arping -q -U -c 1 -w 1 -I eth0 "$ADDRESS" &
}
