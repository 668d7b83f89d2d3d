# shellcheck shell=bash
# The container arrives on this host.
stamp begin
mount_rootfs
stamp 'mount rootfs'
runc restore --detach --bundle "$RUN/bundle" --tcp-established --file-locks \
    --image-path "$RUN/images" --work-path "$RUN/work" "$NAME"
stamp restore
attach
stamp attach
wait
