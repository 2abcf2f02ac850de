#!/usr/bin/env python3
"""Machine q35: a disk with a boot loader of its own, and a kernel from outside; both with two vCPUs
fork, and a clone forks again."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal  # noqa: E402

PATTERN = "/opt/test/pattern"


def check(daemon, image, **options):
    name = daemon.run_vm(image, name=image, cpus=2, **options)
    machine = daemon.inspect(name)
    expect_equal((machine["machine"], machine["cpus"]), ("q35", 2), f"the machine of {name}")
    expect_equal(daemon.exec(name, "nproc"), "2", f"vCPUs in {name}")
    daemon.exec(name, PATTERN, "serve", 8, "churn")
    nonce = daemon.exec(name, PATTERN, "nonce")
    clones = daemon.fork(name, 2)
    clones += daemon.fork(clones[0], 1)
    for vm in [name, *clones]:
        expect_equal(daemon.exec(vm, PATTERN, "nonce"), nonce, f"{vm}: cloned, not booted")
        answer = daemon.exec(vm, PATTERN, "verify")
        expect(answer.startswith("OK "), f"{vm}: {answer}")
        expect_equal(daemon.exec(vm, "nproc"), "2", f"vCPUs in {vm}")
        expect_equal(daemon.inspect(vm)["undone"], [], f"{vm}: what was not done")
    for vm in [name, *clones]:
        daemon.snow("rm", "--force", vm)


def main():
    with Daemon(images=["tiny", "bootdisk"]) as daemon:
        check(daemon, "bootdisk")
        check(daemon, "tiny", machine="q35")


if __name__ == "__main__":
    main()
