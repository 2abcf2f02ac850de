#!/usr/bin/env python3
"""Memory that the guest has free is no part of a fork, and what it makes of it later is right.

The guest fills a file in memory and removes it: the kernel reports the free pages, and the VM's RAM file
shrinks. Clones have the parent's pattern whole; each uses the free memory again, finds what it wrote, and
what it did not write is zeros.
"""
# timeout: 300 s
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

PATTERN = "/opt/test/pattern"
MIB = 1 << 20
USED, FREED = 16, 96
FILL = f"""
mkdir -p /m && mount -t tmpfs -o size={FREED + 16}m none /m
tr '\\0' 'x' </dev/zero | dd of=/m/file bs=1M count={FREED} iflag=fullblock 2>/dev/null
md5sum </m/file
"""
ZEROS = f"dd if=/dev/zero of=/m/zeros bs=1M count={FREED} 2>/dev/null; tr -d '\\0' </m/zeros | wc -c"


def ram_bytes(daemon):
    """What the VMs' memory files hold on the host."""
    return sum(path.stat().st_blocks * 512 for path in (daemon.run_dir / "ram").rglob("*")
               if path.is_file())


def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="parent", memory="256M")
        daemon.exec("parent", PATTERN, "serve", USED, "churn")
        digest = daemon.shell("parent", FILL)
        full = ram_bytes(daemon)
        daemon.shell("parent", "rm /m/file")
        wait_for(lambda: full - ram_bytes(daemon) > FREED * MIB // 2,
                 f"the RAM file of {full >> 20} MiB gives back half of {FREED} MiB")

        clones = daemon.fork("parent", 2)
        for vm in ["parent", *clones]:
            expect_equal(daemon.shell(vm, ZEROS), "0", f"bytes of {vm}'s new file that are not zero")
            daemon.shell(vm, "rm /m/zeros")
            expect_equal(daemon.shell(vm, FILL.split("\n", 2)[2]), digest, f"file written in {vm}")
            answer = daemon.exec(vm, PATTERN, "verify")
            expect(answer.startswith("OK "), f"{vm}: {answer}")
            daemon.shell(vm, "rm /m/file")
        # What a clone has dropped in turn is right in its own clone too.
        (grandchild,) = daemon.fork(clones[0], 1)
        expect_equal(daemon.shell(grandchild, ZEROS), "0", "bytes of the grandchild's file")
        for vm in [*clones, grandchild]:
            answer = daemon.exec(vm, PATTERN, "verify")
            expect(answer.startswith("OK "), f"{vm}: {answer}")


if __name__ == "__main__":
    main()
