#!/usr/bin/env python3
"""A full disk and a full memory tmpfs: a clear error, nothing left, and it works when there is room.

The state folder lies on a tmpfs of 160 MiB that the test fills: then a fork (its overlays), an import
and a snapshot are refused with "No space left", the VM goes on, and what was begun is gone. Filling
the run folder's tmpfs keeps a frozen machine from being settled, and nothing from running.
"""
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

PATTERN = "/opt/test/pattern"
HOST_FAILED = 13


class SmallDisk(Daemon):
    """A daemon whose state folder is a small file system."""

    def start(self):
        if not os.path.ismount(self.state_dir):
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0755", "small",
                            self.state_dir], check=True)
        super().start()

    def _remove_all(self):
        self._kill_processes()
        if os.path.ismount(self.state_dir):
            subprocess.run(["umount", "-l", self.state_dir], check=False)
        super()._remove_all()


def fill(folder, leave=0):
    """A file that leaves `leave` bytes of the folder's file system; its path."""
    path = pathlib.Path(folder) / "filler"
    status = os.statvfs(folder)
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leave)
        except OSError:
            pass
    return path


def verify(daemon, vm, when):
    answer = daemon.exec(vm, PATTERN, "verify")
    expect(answer.startswith("OK "), f"{when}: {vm}: {answer}")


def files(daemon):
    return sorted(str(path) for folder in ("images", "snapshots", "disks")
                  for path in (daemon.state_dir / folder).rglob("*"))


def refused(daemon, *command):
    before = files(daemon), [vm["name"] for vm in daemon.vms("--all")]
    error = daemon.snow_fails(*command, code=HOST_FAILED)
    expect("No space left" in error or "full" in error, f"snow {command[0]}: {error}")
    expect_equal((files(daemon), [vm["name"] for vm in daemon.vms("--all")]), before,
                 f"what there is after snow {command[0]} on a full disk")


def main():
    with SmallDisk(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="a")
        daemon.exec("a", PATTERN, "serve", 16, "churn")
        disk = daemon.state_dir.parent / (daemon.state_dir.name + ".raw")
        with open(disk, "wb") as file:
            file.write(os.urandom(8 << 20))
        try:
            filler = fill(daemon.state_dir, 64 << 10)
            refused(daemon, "fork", "a", "-n", 4)
            refused(daemon, "image", "import", disk, "--name", "more")
            refused(daemon, "snapshot", "a", "more")
            verify(daemon, "a", "after a full disk")
            filler.unlink()
            clones = daemon.fork("a", 2)
            daemon.snow("image", "import", disk, "--name", "more")
        finally:
            disk.unlink()
        for vm in ["a", *clones]:
            verify(daemon, vm, "with room again")

        # The memory's tmpfs: what is frozen stays in the stopped QEMU until there is room.
        ram = daemon.run_dir / "ram"
        subprocess.run(["mount", "-o", "remount,size=400m", ram], check=True)
        wait_for(lambda: daemon.inspect(clones[0])["frozen"]["settled"], "settled")
        daemon.exec(clones[0], PATTERN, "own", 5)
        filler = fill(ram, 1 << 20)
        (grandchild,) = daemon.fork(clones[0], 1)
        wait_for(lambda: "cannot be copied yet" in daemon.log_path.read_text(),
                 "the log says that the memory cannot be copied")
        expect(not daemon.inspect(grandchild)["frozen"]["settled"], "it is not settled")
        for vm in [clones[0], grandchild]:
            verify(daemon, vm, "while it cannot be settled")
        filler.unlink()
        wait_for(lambda: daemon.inspect(grandchild)["frozen"]["settled"], "settled with room")
        for vm in ["a", *clones, grandchild]:
            verify(daemon, vm, "settled")


if __name__ == "__main__":
    main()
