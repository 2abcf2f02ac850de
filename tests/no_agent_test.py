#!/usr/bin/env python3
"""A guest without the agent forks from the host; the output says what was not done."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402


def main():
    with Daemon(images=["tiny"], settings={"agent_ready_ms": 3000}) as daemon:
        # A shell is all that this guest starts: its init is not run.
        daemon.run_vm("tiny", agent=False, name="bare",
                      append="console=ttyS0 quiet panic=-1 nokaslr no_timer_check rdinit=/bin/sh")
        wait_for(lambda: "# " in daemon.snow("logs", "bare", check=False), "the guest's shell")
        expect_equal(daemon.inspect("bare")["agent"], False, "agent of a guest that has none")
        daemon.snow_fails("exec", "bare", "--", "true", code=125, says="agent")

        shown = daemon.snow_result("fork", "bare", "-n", "2")
        expect_equal(shown.returncode, 0, f"exit code of the fork: {shown.stderr}")
        for vm in ("bare", "bare.1", "bare.2"):
            for what in ("random numbers", "clock", "identity", "hooks"):
                expect(any(vm in line and what in line for line in shown.stderr.splitlines()) or
                       (vm == "bare" and f"parent: {what}" in shown.stderr),
                       f"that {what} of {vm} was left as it is, is not in:\n{shown.stderr}")
        expect("not reseeded" not in shown.stdout, f"stdout is data only: {shown.stdout}")
        clones = [vm for vm in daemon.vms() if vm["parent"] is not None]
        expect_equal([(vm["name"], vm["state"], vm["agent"]) for vm in clones],
                     [("bare.1", "running", False), ("bare.2", "running", False)], "the clones")
        for vm in clones:
            expect_equal(len(daemon.inspect(vm["name"])["undone"]), 4, f"undone of {vm['name']}")
        daemon.snow_fails("exec", "bare.1", "--", "true", code=125, says="agent")
        # And once more, of a clone.
        expect_equal(len(daemon.fork("bare.1", 1)), 1, "clones of a clone without agent")


if __name__ == "__main__":
    main()
