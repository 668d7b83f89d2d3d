# shellcheck shell=bash
# Once on each host: the image, and the daemon that rsync talks to.
# IMAGE is a tar, RSYNC the daemon's configuration.
mkdir -p "$DISK/lower" "$RUN"/{bundle,rootfs,work}
tar -x --numeric-owner -C "$DISK/lower" -f "$IMAGE"
cat >"$RUN/rsyncd.conf" <<END
use chroot = no
munge symlinks = no
numeric ids = yes
uid = root
gid = root
read only = no
log file = $RUN/rsyncd.log
[images]
path = $RUN/images
[disk]
path = $DISK
END
rsync --daemon --config="$RUN/rsyncd.conf" --address="$OWN" --port="$PORT"
