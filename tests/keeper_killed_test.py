#!/usr/bin/env python3
"""The keeper killed is the one thing that VMs do not survive: it is said, cleaned up, and over.

After kill -9 of the keeper no QEMU runs; the running daemon calls its VMs lost and refuses new ones
with a message that says what to do; the next daemon removes what was left and new VMs run. The same
when keeper and daemon die together.
"""
import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, processes_with, wait_for  # noqa: E402


def kill_keeper(daemon):
    (keeper,) = [pid for pid, command in processes_with(str(daemon.run_dir)).items()
                 if "snow-keeper" in command.split()[0]]
    qemus = [vm["pid"] for vm in daemon.vms()]
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in qemus),
             "the QEMUs end with the keeper")


def ends(daemon):
    return {(vm["state"], vm["exit"]["how"]) for vm in daemon.vms("--all")}


def left(daemon):
    """Files that hold a guest's memory, disk or sockets."""
    return [str(path) for folder in (daemon.run_dir / "ram", daemon.run_dir / "p",
                                     daemon.state_dir / "disks")
            for path in folder.rglob("*") if not path.is_dir()]


def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="a")
        daemon.fork("a", 1)
        kill_keeper(daemon)
        wait_for(lambda: all(vm["state"] == "crashed" for vm in daemon.vms("--all")),
                 "the daemon says that its VMs are lost")
        expect_equal(ends(daemon), {("crashed", "lost")}, "how they ended")
        expect("keeper" in daemon.inspect("a")["exit"]["message"], "the keeper is named")
        daemon.snow_fails("run", "--detach", "tiny", says="keeper", code=12)

        daemon.restart()
        expect_equal(ends(daemon), {("crashed", "lost")}, "after the restart")
        expect_equal(left(daemon), [], "files left by the lost VMs")
        for vm in daemon.vms("--all"):
            daemon.snow("rm", vm["id"])
        daemon.run_vm("tiny", name="a")
        daemon.fork("a", 1)

        # Together with the daemon: the next one finds out by itself.
        daemon.process.send_signal(signal.SIGSTOP)
        keepers = [pid for pid, command in processes_with(str(daemon.run_dir)).items()
                   if "snow-keeper" in command.split()[0]]
        os.kill(keepers[0], signal.SIGKILL)
        daemon.kill9()
        daemon.start()
        expect_equal(ends(daemon), {("crashed", "lost")}, "after both were killed")
        expect("keeper" in daemon.inspect("a")["exit"]["message"], "the keeper is named again")
        expect_equal(left(daemon), [], "files left after both were killed")
        daemon.snow("rm", "a")
        daemon.run_vm("tiny", name="a")
        expect_equal(daemon.exec("a", "echo", "alive"), "alive", "a new VM")


if __name__ == "__main__":
    main()
