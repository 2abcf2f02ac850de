#!/usr/bin/env python3
"""Fork under KVM, wherever /dev/kvm opens, with a guest that even a KVM without vmx or svm runs: a
boot sector that counts in the first word of each page from 0x20000 to 0x80000, in turn (see
qemu/test_qemu.h). At any moment the pages before some page are one ahead of those behind it: a page
that is stale or lost shows. It has no agent; the fork must say what it therefore did not do."""
import os
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

FIRST, END, PAGE = 0x20000, 0x80000, 4096
MEMORY = 32 << 20
GUEST = bytes.fromhex("fa b80020 8ed8 66c7060000 00000000 050001 3d0080 75ed"
                      "b80020 8ed8 66ff060000 050001 3d0080 75f1 ebec")


def boot_sector():
    return GUEST.ljust(510, b"\0") + b"\x55\xaa"


def counters(pid):
    """Of the stopped guest, out of QEMU's mapping of its memory."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if end - start == MEMORY and line.split()[1].startswith("rw"):
                break
        else:
            raise AssertionError(f"process {pid} has no mapping of {MEMORY} bytes")
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        return [int.from_bytes(os.pread(memory.fileno(), 4, start + at), "little")
                for at in range(FIRST, END, PAGE)]


def consistent(values):
    ahead = 0
    while ahead < len(values) and values[ahead] == values[0]:
        ahead += 1
    return all(value + 1 == values[0] for value in values[ahead:])


def look(daemon, vm):
    """Pauses it: its counters. It goes on afterwards."""
    daemon.snow("pause", vm)
    values = counters(daemon.inspect(vm)["pid"])
    daemon.snow("resume", vm)
    return values


def goes_on(daemon, vm, past, strict=True):
    """Waits until it has counted beyond `past`; each look must be consistent. The last count."""
    def beyond():
        values = look(daemon, vm)
        if not consistent(values):
            expect(not strict, f"{vm}: a page is stale or lost: {values}")
            return 0  # still in the BIOS, or zeroing
        return values[-1] if values[-1] > past else 0
    return wait_for(beyond, f"{vm} counts beyond {past}")


def main():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError as error:
        print(f"SKIP: /dev/kvm does not open: {error}")
        return
    with tempfile.NamedTemporaryFile(prefix="snow-", suffix=".raw") as disk, \
            Daemon(images=[]) as daemon:
        disk.write(boot_sector().ljust(1 << 20, b"\0"))
        disk.flush()
        daemon.snow("image", "import", disk.name, "--name", "counter")
        daemon.run_vm("counter", agent=False, name="a", accel="kvm", machine="q35", memory="32M")
        expect_equal(daemon.inspect("a")["accelerator"], "kvm", "accelerator")
        count = goes_on(daemon, "a", 10, strict=False)
        family = ["a"]
        for parent, clones in (("a", 2), ("a.1", 1)):
            count = goes_on(daemon, parent, 10)
            answer = daemon.snow_json("fork", parent, "-n", clones)
            expect(any("no agent" in line for line in answer["undone"]),
                   f"what the fork could not do: {answer['undone']}")
            names = [clone["name"] for clone in answer["clones"]]
            count = max(goes_on(daemon, vm, count) for vm in [parent, *names])
            family += names
        time.sleep(0.2)
        for vm in family:
            goes_on(daemon, vm, look(daemon, vm)[-1])


if __name__ == "__main__":
    main()
