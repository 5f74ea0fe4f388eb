#!/bin/sh
# install.sh [install|uninstall] [--from FILE|--source] [--root DIR]
#
# Installs efs-fuse on Debian, Ubuntu, Amazon Linux 2023 and RHEL-likes:
# program, mount helper, systemd units, man pages, completions.
#
#   --from FILE    a package (.deb, .rpm) or the program itself
#   --source       builds it from the source this script lies in (needs cargo)
#   --root DIR     installs below DIR (for images; the package manager is not
#                  asked then)
#
# Without either: a package or program beside this script, else the source.
# Running it again changes nothing. `uninstall` stops the mounts of
# efs-fuse@.service and removes what was installed; it leaves /etc/efs-fuse
# and /etc/fstab alone.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
action=install from='' source='' root=''

say() { echo "install.sh: $*"; }
fail() {
    echo "install.sh: $*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

while [ $# -gt 0 ]; do
    case $1 in
    install | uninstall) action=$1 ;;
    --from)
        [ $# -ge 2 ] || fail "--from needs a file"
        from=$2
        shift
        ;;
    --source) source=yes ;;
    --root)
        [ $# -ge 2 ] || fail "--root needs a directory"
        root=$2
        shift
        ;;
    -h | --help)
        sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) fail "unknown argument $1; see --help" ;;
    esac
    shift
done

[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "must be root (sudo $0)"
sbin=$root/usr/sbin
units=$root/usr/lib/systemd/system
man=$root/usr/share/man
[ ! -d "$root/lib/systemd/system" ] || [ -L "$root/lib" ] || units=$root/lib/systemd/system

reload() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload || true
    fi
}

# put MODE FROM TO: only if it differs, so that a second run changes nothing.
put() {
    if [ -f "$3" ] && cmp -s "$2" "$3"; then return; fi
    mkdir -p "$(dirname "$3")"
    # Beside it and then over it: a program that runs is not written to.
    install -m "$1" "$2" "$3.new"
    mv -f "$3.new" "$3"
    changed=yes
}

link() {
    if [ "$(readlink "$2" 2>/dev/null || true)" = "$1" ]; then return; fi
    ln -sfn "$1" "$2"
    changed=yes
}

packaged() {
    [ -z "$root" ] || return 1
    if have dpkg-query; then
        [ "$(dpkg-query -W -f='${db:Status-Status}' efs-fuse 2>/dev/null || true)" = installed ]
    elif have rpm; then
        rpm -q efs-fuse >/dev/null 2>&1
    else
        return 1
    fi
}

uninstall() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl disable --now efs-fuse-metrics.service 2>/dev/null || true
        systemctl stop 'efs-fuse@*.service' 2>/dev/null || true
    fi
    if packaged; then
        if have dpkg; then dpkg --remove efs-fuse; else rpm -e efs-fuse; fi
    else
        rm -f "$sbin/efs-fuse" "$sbin/mount.efs-fuse" "$sbin/mount.fuse.efs-fuse" \
            "$units/efs-fuse@.service" "$units/efs-fuse-metrics.service" \
            "$man"/man8/efs-fuse.8 "$man"/man8/efs-fuse-*.8 "$man"/man8/efs-fuse@.service.8 \
            "$man"/man8/mount.efs-fuse.8 "$man"/man5/efs-fuse.conf.5 \
            "$root/usr/share/bash-completion/completions/efs-fuse" \
            "$root/usr/share/zsh/site-functions/_efs-fuse" \
            "$root/usr/share/fish/vendor_completions.d/efs-fuse.fish"
        # Where no other program has put anything.
        for dir in zsh/site-functions zsh fish/vendor_completions.d fish; do
            rmdir "$root/usr/share/$dir" 2>/dev/null || true
        done
    fi
    reload
    say "uninstalled"
}

# A dependency that most machines have, by the name the distribution gives it.
need_fuse() {
    [ -z "$root" ] || return 0
    if [ ! -c /dev/fuse ]; then
        modprobe fuse 2>/dev/null || true
        [ -c /dev/fuse ] || say "warning: no /dev/fuse: the kernel module fuse is missing"
    fi
    have fusermount3 || say "note: without fuse3 (fusermount3) only root can mount"
}

install_program() {
    program=$1
    "$program" --version >/dev/null 2>&1 || fail "$program does not run on this machine"
    changed=
    put 755 "$program" "$sbin/efs-fuse"
    link efs-fuse "$sbin/mount.efs-fuse"
    link efs-fuse "$sbin/mount.fuse.efs-fuse"
    for name in efs-fuse@.service efs-fuse-metrics.service; do
        unit=$here/../systemd/$name
        [ -f "$unit" ] || unit=$here/$name
        [ ! -f "$unit" ] || put 644 "$unit" "$units/$name"
    done
    made=$(mktemp -d)
    trap 'rm -rf "$made"' EXIT
    "$program" generate man "$made/man"
    "$program" generate completions "$made/completions"
    for page in "$made"/man/*.[58]; do
        put 644 "$page" "$man/man${page##*.}/$(basename "$page")"
    done
    put 644 "$made/completions/efs-fuse.bash" "$root/usr/share/bash-completion/completions/efs-fuse"
    put 644 "$made/completions/_efs-fuse" "$root/usr/share/zsh/site-functions/_efs-fuse"
    put 644 "$made/completions/efs-fuse.fish" "$root/usr/share/fish/vendor_completions.d/efs-fuse.fish"
    if [ -n "$changed" ]; then
        reload
        say "installed $("$program" --version)"
    else
        say "nothing to do: $("$program" --version) is installed"
    fi
}

install_package() {
    case $1 in
    *.deb)
        version=$(dpkg-deb -f "$1" Version)
        if packaged && [ "$(dpkg-query -W -f='${Version}' efs-fuse)" = "$version" ]; then
            say "nothing to do: efs-fuse $version is installed"
            return
        fi
        # apt-get also gets what it depends on; without a network dpkg does.
        DEBIAN_FRONTEND=noninteractive apt-get install -y "$(realpath "$1")" || dpkg -i "$1"
        ;;
    *.rpm)
        if packaged && [ "$(rpm -q efs-fuse)" = "$(rpm -qp "$1" 2>/dev/null)" ]; then
            say "nothing to do: $(rpm -q efs-fuse) is installed"
            return
        fi
        if have dnf; then dnf install -y "$1"; elif have yum; then yum install -y "$1"; else rpm -U "$1"; fi
        ;;
    esac
    say "installed $(efs-fuse --version)"
}

build() {
    [ -f "$here/../Cargo.toml" ] || fail "no source beside this script: --from FILE"
    have cargo || fail "cargo is missing: install a Rust toolchain (rustup, or the package cargo), or use --from FILE"
    have cc || fail "a C compiler is missing: install gcc"
    (cd "$here/.." && cargo build --release --locked) || fail "the build failed"
    built=${CARGO_TARGET_DIR:-$here/../target}/release/efs-fuse
}

if [ "$action" = uninstall ]; then
    uninstall
    exit 0
fi

need_fuse
if [ -z "$from" ] && [ -z "$source" ]; then
    kind=deb
    have dpkg || kind=rpm
    for candidate in "$here"/efs-fuse*."$kind" "$here/efs-fuse"; do
        if [ -f "$candidate" ]; then
            from=$candidate
            break
        fi
    done
fi
case $from in
'')
    build
    install_program "$built"
    ;;
*.deb | *.rpm)
    [ -f "$from" ] || fail "$from is not there"
    [ -z "$root" ] || fail "a package is not installed below --root"
    install_package "$from"
    ;;
*)
    [ -f "$from" ] || fail "$from is not there"
    install_program "$(realpath "$from")"
    ;;
esac
