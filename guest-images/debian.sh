# shellcheck shell=sh
# debian: Debian 12 with systemd, Python and SQLite, the agent as a service, root logged in on the
# serial console. For the demo, and as the guest that people know.
root=$TMPDIR/root
mkdir "$root"
tar -C "$root" --numeric-owner --xattrs -xpf "$IMAGES/debian-base/root.tar"

echo debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 debian\n' >"$root/etc/hosts"
echo '# The kernel command line names the root file system.' >"$root/etc/fstab"
: >"$root/etc/machine-id"   # each VM makes its own
rm -f "$root/var/lib/dbus/machine-id" "$root/etc/resolv.conf"
chroot "$root" passwd -d root
cp -a "$HERE/files/debian/." "$root/"
cp -a "$IMAGES/guest/test" "$root/opt/test"
cp -a "$IMAGES/guest/root/." "$TMPDIR/guest-root"
# /lib is a link to usr/lib here; a folder would replace it.
if [ -d "$TMPDIR/guest-root/lib" ]; then
  cp -a "$TMPDIR/guest-root/lib/." "$root/usr/lib/"
  rm -rf "$TMPDIR/guest-root/lib"
fi
cp -a "$TMPDIR/guest-root/." "$root/"
chroot "$root" ldconfig

# The image's own systemctl: the host may have none.
services() { chroot "$root" env SYSTEMD_OFFLINE=1 systemctl "$@"; }

# What a VM that lives for minutes does not need costs its boot time.
services set-default multi-user.target
services mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
  e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer \
  systemd-pstore.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
  systemd-networkd-wait-online.service systemd-timesyncd.service systemd-rfkill.service \
  systemd-rfkill.socket getty@tty1.service sys-kernel-debug.mount sys-kernel-tracing.mount \
  dev-hugepages.mount dev-mqueue.mount modprobe@drm.service modprobe@fuse.service \
  modprobe@configfs.service systemd-journal-flush.service systemd-journal-catalog-update.service \
  systemd-update-done.service ldconfig.service systemd-hwdb-update.service console-setup.service \
  keyboard-setup.service systemd-network-generator.service systemd-binfmt.service \
  modprobe@dm_mod.service modprobe@loop.service modprobe@efi_pstore.service \
  systemd-modules-load.service systemd-logind.service systemd-remount-fs.service
services enable acpid.service serial-getty@ttyS0.service
[ ! -f "$root/lib/systemd/system/snow-agent.service" ] ||
  services enable snow-agent.service

ln "$IMAGES/debian-base/kernel" kernel
ln "$IMAGES/debian-base/initrd" initrd
rm -rf "${root:?}"/dev/* "${root:?}"/tmp/* "${root:?}"/run/*
truncate -s 2G disk.raw
mke2fs -q -t ext4 -L root -E lazy_itable_init=1,lazy_journal_init=1 -d "$root" disk.raw
cat >image.json <<'EOF'
{
  "memory": 536870912,
  "cpus": 1,
  "append": "console=ttyS0 root=/dev/vda rw rootflags=noatime quiet panic=-1 reboot=t mitigations=off nokaslr no_timer_check random.trust_cpu=on tsc=reliable fsck.mode=skip cryptomgr.notests 8250.nr_uarts=1 audit=0 apparmor=0 rcupdate.rcu_expedited=1 nowatchdog",
  "kernel": "kernel",
  "initrd": "initrd",
  "disk": "disk.raw"
}
EOF
