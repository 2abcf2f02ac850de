# shellcheck shell=sh
# bootdisk: a disk with its own boot loader (syslinux on a FAT partition), as people import them:
# the machine's BIOS starts it, no kernel is given from outside. Inside it is tiny. Made without
# loop devices.
sectors=524288   # 256 MiB
first=2048
truncate -s $((sectors * 512)) disk.raw
printf 'label: dos\nstart=%d, type=c, bootable\n' $first | /sbin/sfdisk --quiet disk.raw
dd if=/usr/lib/syslinux/mbr/mbr.bin of=disk.raw conv=notrunc status=none
append=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["append"])' "$IMAGES/tiny/image.json")
cat >"$TMPDIR/syslinux.cfg" <<EOF
SERIAL 0 115200
DEFAULT tiny
PROMPT 0
LABEL tiny
  LINUX vmlinuz
  INITRD initrd
  APPEND $append
EOF
export MTOOLS_SKIP_CHECK=1
drive=disk.raw@@$((first * 512))
mformat -i "$drive" -F -T $((sectors - first)) -h 64 -s 32 -H $first -v SNOW ::
mcopy -i "$drive" "$IMAGES/kernel/vmlinuz" ::vmlinuz
mcopy -i "$drive" "$IMAGES/tiny/initrd" ::initrd
mcopy -i "$drive" "$TMPDIR/syslinux.cfg" ::syslinux.cfg
syslinux --offset $((first * 512)) --install disk.raw
cat >image.json <<'EOF'
{ "memory": 268435456, "cpus": 1, "disk": "disk.raw" }
EOF
