# shellcheck shell=bash
# The container begins on this host.
mount_rootfs
runc run --detach --bundle "$RUN/bundle" "$NAME"
attach
wait
