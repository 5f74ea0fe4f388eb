#!/bin/bash
# EC2 UserData: installs efs-fuse and mounts a file system on /volumes before
# docker and ecs start, now and at every boot. Put the whole file into UserData
# (or run it as root, again if you like: a second run changes nothing) after
# setting these. Each may also come from the environment.
set -euo pipefail
umask 022

# What to mount: fs-ID, fs-ID:/dir, or HOST:/dir.
EFS_FUSE_DEVICE=${EFS_FUSE_DEVICE:-fs-0123abcd:/}
# The options. wait=forever keeps docker (and logins of users other than root)
# waiting until the volume is there; wait=600 lets the boot go on after that.
# nosuid,nodev: who can write to the file system makes nobody root by it.
EFS_FUSE_OPTIONS=${EFS_FUSE_OPTIONS:-tls,iam,nosuid,nodev,wait=forever}
# Where the package or the program comes from: an s3:// or https:// address, or
# a file in the image. Empty: it is in the image already.
EFS_FUSE_PACKAGE=${EFS_FUSE_PACKAGE:-}
# What comes over the network is installed only if it is what is meant. Either
# its SHA-256 (64 digits; scripts/package writes SHA256SUMS beside packages) ...
EFS_FUSE_SHA256=${EFS_FUSE_SHA256:-}
# ... or a public key of yours, a PEM file in the image: SHA256SUMS and
# SHA256SUMS.sig are then fetched from beside the package, and the signature
# (openssl dgst -sha256 -sign) is by that key.
EFS_FUSE_KEY=${EFS_FUSE_KEY:-}

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

fail() {
    echo "userdata: $*" >&2
    exit 1
}

# fetch ADDRESS FILE
fetch() {
    case $1 in
    s3://*) aws s3 cp --only-show-errors "$1" "$2" ;;
    https://*)
        # The network is there when cloud-init runs this, but may be young.
        curl --proto '=https' --proto-redir '=https' --fail --silent --show-error --location \
            --retry 10 --retry-connrefused -o "$2" "$1"
        ;;
    esac
}

# verify FILE NAME ADDRESS DIRECTORY: ends here unless FILE is what is meant.
verify() {
    local file=$1 name=$2 address=$3 dir=$4 sum=$EFS_FUSE_SHA256
    if [ -n "$EFS_FUSE_KEY" ]; then
        fetch "${address%/*}/SHA256SUMS" "$dir/SHA256SUMS"
        fetch "${address%/*}/SHA256SUMS.sig" "$dir/SHA256SUMS.sig"
        openssl dgst -sha256 -verify "$EFS_FUSE_KEY" -signature "$dir/SHA256SUMS.sig" "$dir/SHA256SUMS" >/dev/null ||
            fail "SHA256SUMS of $address is not signed by $EFS_FUSE_KEY"
        sum=$(awk -v name="$name" '$2 == name || $2 == "*" name { print $1; exit }' "$dir/SHA256SUMS")
        [ -n "$sum" ] || fail "SHA256SUMS of $address does not name $name"
    fi
    printf '%s  %s\n' "$sum" "$file" | sha256sum --check --status 2>/dev/null ||
        fail "$address is not what is meant: its SHA-256 is $(sha256sum "$file" | cut -d' ' -f1), not $sum"
}

install_program() {
    if command -v efs-fuse >/dev/null; then return; fi
    [ -n "$EFS_FUSE_PACKAGE" ] ||
        fail "efs-fuse is not installed, and EFS_FUSE_PACKAGE names nothing to install"
    local file=$EFS_FUSE_PACKAGE name=${EFS_FUSE_PACKAGE##*/}
    case $file in
    s3://* | https://*)
        [ -n "$EFS_FUSE_SHA256$EFS_FUSE_KEY" ] ||
            fail "$file is not installed unverified: set EFS_FUSE_SHA256 or EFS_FUSE_KEY"
        # Nobody else can name, read or write what is in it.
        downloads=$(mktemp -d)
        trap 'rm -rf "$downloads"' EXIT
        file=$downloads/$name
        fetch "$EFS_FUSE_PACKAGE" "$file"
        verify "$file" "$name" "$EFS_FUSE_PACKAGE" "$downloads"
        ;;
    *://*) fail "$file: only s3:// and https:// are fetched" ;;
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
