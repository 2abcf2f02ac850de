#!/usr/bin/env python3
"""Snapshots: made, listed, shown, started from, kept over a restart of the daemon, and removed when
nobody runs on them."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal  # noqa: E402

PATTERN = "/opt/test/pattern"


def names(daemon):
    return [snapshot["name"] for snapshot in daemon.snow_json("snapshot", "ls")]


def verify(daemon, vm, nonce):
    expect_equal(daemon.exec(vm, PATTERN, "nonce"), nonce, f"nonce in {vm}")
    answer = daemon.exec(vm, PATTERN, "verify")
    expect(answer.startswith("OK "), f"{vm}: {answer}")


def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="a")
        daemon.exec("a", PATTERN, "serve", 8)
        nonce = daemon.exec("a", PATTERN, "nonce")
        expect_equal(daemon.snow("snapshot", "a", "first", "-o", "name").strip(), "first",
                     "what `snow snapshot` prints")
        daemon.snow_fails("snapshot", "a", "first", code=4, says="first")
        daemon.snow_fails("snapshot", "nobody", "x", code=3, says="nobody")
        daemon.snow_fails("snapshot", "a", "../x", says="../x")
        daemon.snow_fails("snapshot", "show", "none", code=3, says="none")
        daemon.snow_fails("run", "--from", "none", code=3, says="none")
        verify(daemon, "a", nonce)

        # A snapshot of a clone that has changed what it inherited.
        (clone,) = daemon.fork("a", 1)
        daemon.exec(clone, PATTERN, "own", 7)
        daemon.snow("snapshot", "create", clone, "second")
        expect_equal(names(daemon), ["first", "second"], "snapshots")
        shown = daemon.snow_json("snapshot", "show", "second")
        shown = shown[0] if isinstance(shown, list) else shown
        expect_equal((shown["image"], shown["memory"], shown["cpus"]), ("tiny", 128 << 20, 1),
                     "what show says")
        expect(shown["stored"] > 8 << 20, f"bytes on the disk: {shown['stored']}")
        # No longer than those that it was made of.
        daemon.snow("rm", "--force", "a", clone)
        daemon.restart()
        expect_equal(names(daemon), ["first", "second"], "snapshots after a restart")

        four = daemon.snow("run", "--from", "second", "-n", "4", "--name", "many", "-o",
                           "name").split()
        expect_equal(sorted(four), [f"many.{i}" for i in range(1, 5)], "names of four")
        for vm in four:
            verify(daemon, vm, nonce)
        expect_equal(len({daemon.inspect(vm)["uuid"] for vm in four}), 4, "UUIDs of four")
        daemon.exec(four[0], PATTERN, "own", 8)
        verify(daemon, four[1], nonce)
        daemon.snow_fails("snapshot", "rm", "second", code=7, says="second")
        daemon.snow("snapshot", "rm", "first")
        expect_equal(names(daemon), ["second"], "after rm")

        # A VM that runs on a snapshot goes on under the next daemon, and forks.
        daemon.snow("rm", "--force", *four[1:])
        daemon.restart()
        verify(daemon, four[0], nonce)
        (below,) = daemon.fork(four[0], 1)
        verify(daemon, below, nonce)
        daemon.snow_fails("snapshot", "rm", "second", code=7, says="second")
        daemon.snow("rm", "--force", four[0], below)
        daemon.snow("snapshot", "rm", "second")
        expect_equal(names(daemon), [], "in the end")


if __name__ == "__main__":
    main()
