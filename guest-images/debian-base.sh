# shellcheck shell=sh
# debian-base: what debian takes from the archive, before anything of ours is added: root.tar, the
# kernel (uncompressed), the initrd. Apart, so that a change of the agent does not fetch Debian anew.
packages="systemd-sysv,udev,kmod,dbus,acpid,iproute2,procps,python3,sqlite3,wamerican,busybox,zstd"
packages="$packages,initramfs-tools,linux-image-cloud-amd64"
root=$TMPDIR/root

# The initrd: only what finds the disk, on either machine type.
mkdir -p "$TMPDIR/initramfs"
cat >"$TMPDIR/initramfs/modules" <<'EOF'
virtio_mmio
virtio_pci
virtio_blk
EOF
cat >"$TMPDIR/initramfs/conf" <<'EOF'
MODULES=list
BUSYBOX=auto
COMPRESS=zstd
COMPRESSLEVEL=3
RESUME=none
FSTYPE=ext4
EOF

# Debian's own sources (the host's may name others); the host's proxy settings apply.
mmdebstrap --quiet --variant=minbase --include="$packages" \
  --aptopt='Apt::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --essential-hook="mkdir -p \"\$1/etc/initramfs-tools/conf.d\"" \
  --essential-hook="copy-in '$TMPDIR/initramfs/modules' /etc/initramfs-tools" \
  --essential-hook="cp '$TMPDIR/initramfs/conf' \"\$1/etc/initramfs-tools/conf.d/snow\"" \
  bookworm "$root" \
  'deb http://deb.debian.org/debian bookworm main' \
  'deb http://deb.debian.org/debian bookworm-updates main' \
  'deb http://deb.debian.org/debian-security bookworm-security main'

rm -rf "$root/var/lib/apt/lists" "$root/var/cache/apt" "$root/var/cache/debconf"
mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial"
python3 "$HERE/extract_vmlinux.py" "$root"/boot/vmlinuz-* kernel
cp "$root"/boot/initrd.img-* initrd
rm -rf "${root:?}"/boot/* "$root/vmlinuz" "$root/initrd.img" "$root/vmlinuz.old" "$root/initrd.img.old"
tar -C "$root" --numeric-owner --xattrs --one-file-system -cf root.tar .
