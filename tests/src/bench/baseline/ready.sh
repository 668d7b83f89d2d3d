# shellcheck shell=bash
# Before the container comes to this host, and after it has left: nothing of it is here, and its place is prepared.
! mountpoint -q "$RUN/rootfs" || umount "$RUN/rootfs"
rm -rf "$RUN/images" "$RUN"/work/* "$DISK"/{upper,work,volume}
mkdir -p "$RUN/images" "$DISK"/{upper,work,volume}
! ip link show "$LINK" >/dev/null 2>&1 || ip link delete "$LINK"
[ ! -e "/run/netns/$LINK" ] || ip netns delete "$LINK"
ip netns add "$LINK"
ip link add "$LINK" type veth peer name eth0 address "$MAC" netns "$LINK"
ip link set "$LINK" up
ip -n "$LINK" link set lo up
ip -n "$LINK" address add "$ADDRESS/24" dev eth0
ip -n "$LINK" link set eth0 up
