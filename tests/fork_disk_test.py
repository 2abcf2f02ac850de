#!/usr/bin/env python3
"""A fork copies the disk, too: everybody keeps what was there and sees only its own later writes.

What was written before a fork (whether it has reached the disk or is still in the guest's cache) is in
parent and clones, down to a clone of a clone of a clone; then each changes a shared file in its own
way. Read back from the disk, past the guest's cache, each has its own. A snapshot has memory and disk
of that moment, and the file system of a clone is sound. The image on the host does not change.
"""
import hashlib
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal  # noqa: E402

BLOCKS = 512  # of 4 KiB, in the file that all share


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_own(daemon, vm, tag):
    """Overwrites every 16th block of the shared file and adds a file; what it should be, by name."""
    return dict(reversed(line.split()) for line in daemon.shell(vm, f"""
        set -e
        yes "{tag} block" | head -c 4096 >/tmp/block
        block=0
        while [ $block -lt {BLOCKS} ]; do
          dd if=/tmp/block of=/data/shared bs=4096 seek=$block conv=notrunc 2>/dev/null
          block=$((block + 16))
        done
        yes {tag} | head -c 300000 >/data/own-{tag}
        find /data -type f | xargs sha256sum""").splitlines())


def digests(daemon, vm):
    """Of all files on its disk, read from the disk."""
    return dict(reversed(line.split()) for line in daemon.shell(
        vm, "sync; echo 3 >/proc/sys/vm/drop_caches; find /data -type f | xargs sha256sum"
    ).splitlines())


def main():
    with Daemon(images=["tiny"]) as daemon:
        (disk,) = daemon.state_dir.glob("images/tiny/disk.raw")
        image = digest_of(disk)
        daemon.run_vm("tiny", name="parent")
        # Half of it is on the disk when the fork comes, the other half in the guest's cache.
        daemon.shell("parent", f"""
            head -c {BLOCKS * 2048} /dev/urandom >/data/shared; sync
            head -c {BLOCKS * 2048} /dev/urandom >>/data/shared; echo only-in-ram >/tmp/token""")
        wanted = {"parent": None}
        for clone in daemon.fork("parent", 2):
            wanted[clone] = None
        first = list(wanted)[1]
        common = daemon.shell("parent", "sha256sum </data/shared")
        for vm in wanted:
            expect_equal(daemon.shell(vm, "sha256sum </data/shared"), common,
                         f"what {vm} inherited")
        for vm in wanted:
            wanted[vm] = write_own(daemon, vm, vm)
        # Two generations more: each begins with its parent's disk, own writes and all.
        above = first
        for _ in range(2):
            (below,) = daemon.fork(above, 1)
            expect_equal(digests(daemon, below), wanted[above], f"{below} inherits from {above}")
            wanted[below] = write_own(daemon, below, below)
            above = below
        for vm, files in wanted.items():
            expect_equal(digests(daemon, vm), files, f"the disk of {vm}")

        # A snapshot of the deepest, and four from it.
        daemon.snow("snapshot", above, "kept")
        write_own(daemon, above, "later")
        copies = daemon.snow("run", "--from", "kept", "-n", "4", "-o", "name").split()
        expect_equal(len(copies), 4, "VMs from the snapshot")
        for vm in copies:
            expect_equal(digests(daemon, vm), wanted[above], f"{vm}: the snapshot's disk")
            expect_equal(daemon.exec(vm, "cat", "/tmp/token"), "only-in-ram",
                         f"{vm}: the snapshot's memory")
        kept = write_own(daemon, copies[0], "copy")
        expect_equal(digests(daemon, copies[1]), wanted[above], "a sibling's disk")
        expect_equal(digests(daemon, copies[0]), kept, "its own disk")

        # The file system after three forks and a thaw, as the host's fsck sees it.
        daemon.shell(copies[0], "cd /; umount /data")
        daemon.snow("snapshot", copies[0], "checked")
        check = subprocess.run(["e2fsck", "-fn", daemon.state_dir / "snapshots/checked/disk.raw"],
                               capture_output=True, text=True, check=False)
        expect(check.returncode == 0, f"e2fsck: {check.returncode}\n{check.stdout}{check.stderr}")
        for vm in copies:
            daemon.snow("rm", "--force", vm)
        daemon.snow("snapshot", "rm", "kept", "checked")
        expect_equal(digest_of(disk), image, "the image's disk on the host")


if __name__ == "__main__":
    main()
