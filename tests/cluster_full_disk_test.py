#!/usr/bin/env python3
"""A host with a full disk is given clones of another host's VM: no wrong byte, and it recovers.

The state folder of each host is a small file system, which the test fills on h1. With next to no
room a fork there is refused with a clear error or works, and leaves nothing when refused. With a
little room the clones run: pages that cannot be kept are fetched whenever they are needed, every
page verifies, and `snow inspect` says that the disk is full. When there is room again the rest is
fetched and kept.
"""
# timeout: 300 s
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowlab import Lab  # noqa: E402
from snowtest import expect, expect_equal, wait_for  # noqa: E402

PATTERN = "/opt/test/pattern"
MIB = 24
KIB = 1 << 10
NO_ROOM, HOST_FAILED = 6, 13


def fill(host, leave):
    """A file that leaves `leave` bytes of the host's state folder; its path."""
    folder = host.path(host.state_dir)
    path = folder / "filler"

    def filled():
        status = os.statvfs(folder)
        try:
            with open(path, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leave)
        except OSError:
            return False  # the daemon has written something meanwhile
        return True
    wait_for(filled, f"a disk with {leave} bytes left")
    return path


def verify(host, vm, when):
    answer = host.daemon.exec(vm, PATTERN, "verify")
    expect(answer.startswith("OK "), f"{when}: {vm}: {answer}")


def images_of(host, vm):
    """Statistics of the images that the VM's host fetches, as `snow inspect` shows them."""
    layers = host.daemon.inspect(vm)
    found = []

    def search(value):
        if isinstance(value, dict):
            found.extend(value.get("remote", []))
            value = list(value.values())
        for inner in value if isinstance(value, list) else []:
            search(inner)
    search(layers)
    expect(found, f"remote images in {layers}")
    return found


def clones_files(host):
    """What exists for clones, and what was begun of a kernel for them."""
    found = [path for folder in ("disks", "cache")
             for path in host.path(host.state_dir / folder).rglob("*")]
    return found + list(host.path(host.state_dir / "kernels").glob("*.new"))


def no_room_at_all(first, full):
    wait_for(lambda: not clones_files(full), "what clones had is gone")
    filler = fill(full, 0)
    result = first.daemon.snow_result("fork", "parent", "-n", 1, "--hosts", full.name, "-o", "name")
    print(f"with no room: exit {result.returncode} {result.stderr.strip()}", flush=True)
    if result.returncode == 0:
        verify(first, result.stdout.split()[0], "with no room")
        first.snow("rm", "--force", result.stdout.split()[0])
    else:
        expect(result.returncode in (NO_ROOM, HOST_FAILED), f"exit code of {result}")
        expect("No space left" in result.stderr or "full" in result.stderr, result.stderr)
    filler.unlink()
    wait_for(lambda: not clones_files(full), "nothing is left of it")
    expect_equal([vm["name"] for vm in full.snow_json("ps", "-a")], ["parent"], "VMs")
    verify(first, "parent", "after that")


def little_room(first, full):
    filler = fill(full, 2048 * KIB)
    clones = first.daemon.fork("parent", 2, "--hosts", full.name)
    for clone in clones:
        verify(first, clone, "with little room")
    images = images_of(full, clones[0])
    print(f"with little room: {images}", flush=True)
    expect(any(image["pages_not_kept"] > 0 for image in images), f"pages were not kept: {images}")
    wait_for(lambda: any(image["disk_full"] for image in images_of(full, clones[0])),
             "snow inspect says that the disk is full")
    for clone in clones:
        verify(first, clone, "with little room, again")
    return filler, clones


def room_again(first, full, filler, clones):
    filler.unlink()
    first.snow("vm", "detach", clones[0], "-t", 30)
    images = images_of(full, clones[0])
    print(f"with room: {images}", flush=True)
    expect(all(image["complete"] and not image["disk_full"] for image in images),
           f"everything is kept: {images}")
    for tag, clone in enumerate(clones, start=1):
        verify(first, clone, "with room again")
        first.daemon.exec(clone, PATTERN, "own", tag)
        verify(first, clone, "with pages of its own")


def recorded(host, clones):
    """snowd has written down what it could not: those that it complained of, or none."""
    log = host.daemon.log_path.read_text(errors="replace")
    return all(f"VM {clone}: is on record now" in log for clone in clones
               if f"VM {clone}: {host.state_dir}/record.db: cannot record" in log)


def main():
    with Lab(hosts=2, disk="256m", settings={"multicast": "false"}) as lab:
        lab.make_cluster()
        first, full = lab.hosts
        first.daemon.run_vm("tiny", name="parent")
        first.daemon.exec("parent", PATTERN, "serve", MIB)
        no_room_at_all(first, full)
        (clone,) = first.daemon.fork("parent", 1, "--hosts", full.name)  # the kernel is there now
        first.snow("rm", "--force", clone)
        no_room_at_all(first, full)
        filler, clones = little_room(first, full)
        room_again(first, full, filler, clones)
        # What could not be written down while the disk was full is written down by now, or soon.
        wait_for(lambda: recorded(full, clones), "the clones are on record")
        full.daemon.restart()
        for vm in ["parent", *clones]:
            verify(first, vm, "after a restart")


if __name__ == "__main__":
    main()
