#!/usr/bin/env python3
"""A fork copies the whole memory, and nobody sees another's later writes.

A program in the guest fills memory with a pattern made from a nonce that exists in RAM only (a reboot
would lose it), and keeps writing throughout. In the parent and in every clone the nonce is the same
and every page verifies; then each writes its own mark over a third of the pages, and all verify again.
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal  # noqa: E402

PATTERN = "/opt/test/pattern"
MIB = 32


def verify(daemon, vm):
    answer = daemon.exec(vm, PATTERN, "verify")
    expect(answer.startswith("OK "), f"{vm}: {answer}")


def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="parent")
        daemon.exec("parent", PATTERN, "serve", MIB, "churn")
        nonce = daemon.exec("parent", PATTERN, "nonce")
        boot = daemon.shell("parent", "cat /proc/sys/kernel/random/boot_id")

        clones = daemon.fork("parent", 3)
        expect_equal(len(set(clones)), 3, "number of clones")
        family = ["parent", *clones]
        for vm in family:
            expect_equal(daemon.exec(vm, PATTERN, "nonce"), nonce, f"nonce in {vm}")
            expect_equal(daemon.shell(vm, "cat /proc/sys/kernel/random/boot_id"), boot,
                         f"boot id of {vm}: it was cloned, not booted")
            verify(daemon, vm)
        for tag, vm in enumerate(family, start=1):
            daemon.exec(vm, PATTERN, "own", tag)
        for vm in family:
            verify(daemon, vm)

        # A second generation sees its own parent's marks, and the first is not touched.
        (grandchild,) = daemon.fork(clones[0], 1)
        daemon.exec(grandchild, PATTERN, "own", 99)
        for vm in [*family, grandchild]:
            verify(daemon, vm)


if __name__ == "__main__":
    main()
