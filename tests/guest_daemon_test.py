#!/usr/bin/env python3
"""The daemon is killed while a program in the guest waits for its clones: the next one answers."""
import pathlib
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect_equal, wait_for  # noqa: E402

PROGRAM = "/opt/test/caller ticket:2 clone join else await:/tmp/go 'exit:{id}:done' >/tmp/out 2>&1 &"
BEATS = "while :; do echo >>/tmp/beats; sleep 0.1; done"


def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="a")
        # An exec of the old daemon: the next one's, whose numbers begin anew, must not end it.
        beating = threading.Thread(target=daemon.snow_result, args=("exec", "a", "--", "sh", "-c",
                                                                    BEATS))
        beating.start()
        wait_for(lambda: daemon.shell("a", "[ ! -s /tmp/beats ] || echo beats") == "beats",
                 "the program beside")
        daemon.shell("a", PROGRAM)

        def clones():
            found = [vm["name"] for vm in daemon.vms() if vm["parent"] is not None and vm["agent"]]
            return found if len(found) == 2 else None
        names = wait_for(clones, "two clones")
        wait_for(lambda: "clone 0" in daemon.shell("a", "cat /tmp/out"), "the parent waits")
        daemon.kill9()
        beating.join()
        daemon.start()
        for clone in names:
            daemon.wait_agent(clone)
            daemon.shell(clone, "touch /tmp/go", check=False)
        daemon.wait_agent("a")
        wait_for(lambda: daemon.shell("a", "wc -l </tmp/out") == "4", "the join is answered")
        expect_equal(daemon.shell("a", "cat /tmp/out").splitlines(),
                     ["ticket 2 2", "clone 0", "joined 1 exited 1 done", "joined 2 exited 2 done"],
                     "what the program printed")
        beats = int(daemon.shell("a", "wc -l </tmp/beats"))
        wait_for(lambda: int(daemon.shell("a", "wc -l </tmp/beats")) > beats,
                 "the program that runs beside goes on")
        expect_equal([vm["name"] for vm in daemon.vms()], ["a"], "VMs that are left")


if __name__ == "__main__":
    main()
