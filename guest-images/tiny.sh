# shellcheck shell=sh
# tiny: Debian's cloud kernel, busybox, the agent and the test programs in an initramfs; a 64 MiB
# ext4 disk. For tests.
root=$TMPDIR/root
mkdir -p "$root/bin" "$root/sbin" "$root/usr/bin" "$root/usr/sbin" "$root/etc" "$root/lib/modules" \
  "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/root" "$root/data" "$root/opt" "$root/var/log"
ln -s /run "$root/var/run"
cp /bin/busybox "$root/bin/busybox"
for applet in $(/bin/busybox --list-full); do
  [ "$applet" = bin/busybox ] || ln -s /bin/busybox "$root/$applet"
done
cp "$HERE/files/tiny/init" "$root/init"
chmod 755 "$root/init"
cp "$HERE/files/tiny/inittab" "$root/etc/inittab"
for command in poweroff reboot halt; do
  rm -f "$root/sbin/$command"
  cp "$HERE/files/tiny/off" "$root/sbin/$command"
  chmod 755 "$root/sbin/$command"
done
mkdir -p "$root/etc/acpi/PWRF"
printf '#!/bin/sh\nexec /sbin/poweroff\n' >"$root/etc/acpi/PWRF/00000080"
chmod 755 "$root/etc/acpi/PWRF/00000080"
echo tiny >"$root/etc/hostname"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
cp -a "$IMAGES/guest/test" "$root/opt/test"
# Of what guest/ installs, the static programs: there is no C library here.
(cd "$IMAGES/guest/root" && find . -type f) | while read -r file; do
  case $(head -c 4 "$IMAGES/guest/root/$file" | tr -d '\0') in
    "$(printf '\177ELF')") ! readelf -l "$IMAGES/guest/root/$file" | grep -q INTERP || continue ;;
    '#!/b') ;;
    *) continue ;;
  esac
  case $file in *.so* | *.a | *.o) continue ;; esac
  mkdir -p "$root/$(dirname "$file")"
  cp -p "$IMAGES/guest/root/$file" "$root/$file"
done
# And their other names (snow-clone and the like).
(cd "$IMAGES/guest/root" && find . -type l) | while read -r link; do
  target=$(dirname "$link")/$(readlink "$IMAGES/guest/root/$link")
  [ ! -e "$root/$target" ] || cp -P "$IMAGES/guest/root/$link" "$root/$link"
done
# Drivers in the order in which they are loaded; every file needs only those before it.
modules="virtio/virtio_ring virtio/virtio virtio/virtio_mmio virtio/virtio_pci_modern_dev
  virtio/virtio_pci_legacy_dev virtio/virtio_pci char/virtio_console block/virtio_blk
  virtio/virtio_balloon char/hw_random/virtio-rng input/evdev acpi/button misc/pvpanic/pvpanic misc/pvpanic/pvpanic-mmio"
network="net/core/failover drivers/net/net_failover drivers/net/virtio_net"
for module in $modules; do
  cp "$IMAGES/kernel/modules/kernel/drivers/$module.ko" "$root/lib/modules/"
  basename "$module" >>"$root/lib/modules/order"
done
for module in $network; do
  cp "$IMAGES/kernel/modules/kernel/$module.ko" "$root/lib/modules/"
  basename "$module" >>"$root/lib/modules/order"
done
chown -R 0:0 "$root"
(cd "$root" && find . -print0 | sort -z | cpio --quiet --null -o -H newc) >initrd
ln "$IMAGES/kernel/vmlinux" kernel
truncate -s 64M disk.raw
mke2fs -q -t ext4 -O ^has_journal -L data disk.raw
cat >image.json <<'EOF'
{
  "memory": 134217728,
  "cpus": 1,
  "append": "console=ttyS0 quiet panic=-1 reboot=t mitigations=off nokaslr no_timer_check random.trust_cpu=on tsc=reliable cryptomgr.notests 8250.nr_uarts=1 audit=0 apparmor=0 rcupdate.rcu_expedited=1 init_on_alloc=0 nowatchdog",
  "kernel": "kernel",
  "initrd": "initrd",
  "disk": "disk.raw"
}
EOF
