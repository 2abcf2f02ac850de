#!/usr/bin/env python3
"""A guest that resets its machine boots again and is told who it is; a clone that a program in the
guest waits for has crashed with it. A command that was under way ends."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

CALLER = "/opt/test/caller"
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="a", env=["COLOUR=blue"])
        got = daemon.exec("a", CALLER, "ticket:2", "clone", "join", "else", "unless:1",
                          "exit:0:fine", "shell:echo b >/proc/sysrq-trigger", "pause").splitlines()
        expect_equal([" ".join(line.split()[:3]) for line in got[2:]],
                     ["joined 1 crashed", "joined 2 exited"], "a clone that resets its machine")

        (clone,) = daemon.fork("a", 1)
        for vm in ("a", clone):
            before = daemon.exec(vm, "cat", BOOT_ID)
            cut = daemon.snow_result("exec", vm, "--", "sh", "-c",
                                     "echo b >/proc/sysrq-trigger; sleep 1000")
            expect("the guest booted again" in cut.stderr, f"a command that was cut: {cut}")

            def booted():
                now = daemon.exec(vm, "cat", BOOT_ID, check=False)
                return now not in ("", before)
            wait_for(booted, f"{vm} boots again", 120, 0.5)
            wait_for(lambda: daemon.inspect(vm)["agent"], f"the agent of {vm} was told who it is")
            expect_equal(daemon.shell(vm, ". /run/snow/params; echo $SNOW_NAME $COLOUR"),
                         f"{vm} blue", f"who {vm} is")


if __name__ == "__main__":
    main()
