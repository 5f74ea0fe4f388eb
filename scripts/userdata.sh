#!/bin/bash
# EC2 UserData: installs efs-fuse and mounts a file system on /volumes before
# docker and ecs start, now and at every boot. Put the whole file into UserData
# (or run it as root, again if you like: a second run changes nothing) after
# setting these three. Each may also come from the environment.
set -euo pipefail

# What to mount: fs-ID, fs-ID:/dir, or HOST:/dir.
EFS_FUSE_DEVICE=${EFS_FUSE_DEVICE:-fs-0123abcd:/}
# The options. wait=forever keeps docker (and logins of users other than root)
# waiting until the volume is there; wait=600 lets the boot go on after that.
EFS_FUSE_OPTIONS=${EFS_FUSE_OPTIONS:-tls,iam,wait=forever}
# Where the package or the program comes from: an s3:// or https:// address, or
# a file in the image. Empty: it is in the image already.
EFS_FUSE_PACKAGE=${EFS_FUSE_PACKAGE:-}

MOUNTPOINT=${EFS_FUSE_MOUNTPOINT:-/volumes}
NAME=$(systemd-escape --path "$MOUNTPOINT")

say() { echo "userdata: $*"; }
changed=0

# write FILE: from standard input, only if it differs.
write() {
    local text
    text=$(cat)
    if [ -f "$1" ] && [ "$(cat "$1")" = "$text" ]; then return; fi
    mkdir -p "$(dirname "$1")"
    printf '%s\n' "$text" >"$1"
    say "wrote $1"
    changed=1
}

install_program() {
    if command -v efs-fuse >/dev/null; then return; fi
    [ -n "$EFS_FUSE_PACKAGE" ] || {
        echo "userdata: efs-fuse is not installed, and EFS_FUSE_PACKAGE names nothing to install" >&2
        exit 1
    }
    local file=$EFS_FUSE_PACKAGE
    case $file in
    s3://*)
        file=/var/tmp/${file##*/}
        aws s3 cp "$EFS_FUSE_PACKAGE" "$file"
        ;;
    https://*)
        file=/var/tmp/${file##*/}
        # The network is there when cloud-init runs this, but may be young.
        curl --fail --silent --show-error --location --retry 10 --retry-connrefused -o "$file" "$EFS_FUSE_PACKAGE"
        ;;
    esac
    case $file in
    *.deb) DEBIAN_FRONTEND=noninteractive apt-get install -y "$file" || dpkg -i "$file" ;;
    *.rpm) dnf install -y "$file" 2>/dev/null || yum install -y "$file" ;;
    *)
        install -m 755 "$file" /usr/sbin/efs-fuse
        ln -sfn efs-fuse /usr/sbin/mount.efs-fuse
        ln -sfn efs-fuse /usr/sbin/mount.fuse.efs-fuse
        echo "userdata: $file is no package: efs-fuse@.service must be in the image" >&2
        ;;
    esac
    changed=1
}

install_program

write "/etc/efs-fuse/$NAME.conf" <<CONF
DEVICE=$EFS_FUSE_DEVICE
MOUNTPOINT=$MOUNTPOINT
OPTIONS=$EFS_FUSE_OPTIONS
CONF

# A container that starts without the volume writes to the root disk: these
# wait for it. They do not stop with it (Wants=), as its unit restarts by itself.
for service in docker ecs; do
    write "/etc/systemd/system/$service.service.d/efs-fuse.conf" <<DROPIN
[Unit]
Wants=efs-fuse@$NAME.service
After=efs-fuse@$NAME.service
DROPIN
done

if ((changed)); then
    systemctl daemon-reload
fi
systemctl is-enabled --quiet "efs-fuse@$NAME.service" || systemctl enable "efs-fuse@$NAME.service"
if ! systemctl is-active --quiet "efs-fuse@$NAME.service"; then
    # Returns when the volume can be used.
    systemctl start "efs-fuse@$NAME.service"
    say "$EFS_FUSE_DEVICE is mounted on $MOUNTPOINT"
    # What was started before it looks at the root disk.
    for service in docker ecs; do
        if systemctl is-active --quiet "$service.service"; then
            systemctl restart --no-block "$service.service"
        fi
    done
else
    say "$MOUNTPOINT is mounted already"
fi
