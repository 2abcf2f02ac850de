#!/usr/bin/env python3
"""Unpacks the ELF kernel from a bzImage: extract_vmlinux.py BZIMAGE VMLINUX.

Where the payload lies is in the setup header (Linux Documentation/x86/boot.rst, payload_offset);
its last four bytes are the unpacked size.
"""
import shutil
import struct
import subprocess
import sys

PROGRAMS = {
    b"\x02\x21\x4c\x18": ["lz4", "-dc"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-dc"],
    b"\x1f\x8b\x08\x00": ["gzip", "-dc"],
    b"\xfd7zXZ\x00"[:4]: ["xz", "-dc"],
}


def main(source, destination):
    image = open(source, "rb").read()
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(setup_sectors + 1) * 512 + offset:][:length]
    program = PROGRAMS.get(payload[:4])
    if program is None or shutil.which(program[0]) is None:
        sys.exit(f"{source}: cannot unpack a payload that begins with {payload[:4].hex()}")
    size, = struct.unpack("<I", payload[-4:])
    unpacked = subprocess.run(program, input=payload[:-4], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, check=False).stdout
    if unpacked[:4] != b"\x7fELF" or len(unpacked) != size:
        sys.exit(f"{source}: unpacked {len(unpacked)} bytes of {size}, not an ELF kernel")
    with open(destination, "wb") as file:
        file.write(unpacked)


if __name__ == "__main__":
    main(*sys.argv[1:])
