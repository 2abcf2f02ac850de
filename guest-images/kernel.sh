# shellcheck shell=sh
# Debian's cloud kernel: vmlinux (uncompressed: no time is lost unpacking it in the guest), modules/.
fetch() { apt-get download -qq "$(apt-cache depends linux-image-cloud-amd64 |
  awk '/Depends: linux-image/ { print $2; exit }')"; }
out=$PWD
cd "$TMPDIR" || exit 1
fetch || { apt-get update -qq; fetch; }
dpkg-deb -x linux-image-*.deb unpacked
python3 "$HERE/extract_vmlinux.py" unpacked/boot/vmlinuz-* "$out/vmlinux"
version=$(ls unpacked/lib/modules)
cp unpacked/boot/vmlinuz-* "$out/vmlinuz"
depmod -b unpacked "$version"
mv "unpacked/lib/modules/$version" "$out/modules"
echo "$version" >"$out/version"
