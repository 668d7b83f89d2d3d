# shellcheck shell=bash
# The container leaves this host: from the cut to the last byte at the other.
stamp begin
ip link set "$LINK" nomaster
stamp cut
runc checkpoint --tcp-established --file-locks --image-path "$RUN/images" --work-path "$RUN/work" "$NAME"
stamp dump
rsync -a --stats --no-human-readable "$RUN/images/" "rsync://$PEER:$PORT/images/"
stamp 'copy images'
rsync -a --stats --no-human-readable "$DISK/upper" "$DISK/volume" "rsync://$PEER:$PORT/disk/"
stamp 'copy rootfs and volume'
