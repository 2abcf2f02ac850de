#!/usr/bin/env python3
"""The daemon may be killed or stopped at any time: its VMs go on, and the next daemon has them all.

A booted VM, clones, a clone's clone and a VM from a snapshot run the pattern program, which keeps
writing. After each restart every page of each verifies (what was not read before comes through the
next daemon), exec works, `snow ps` is what it was. Killed -9, also right after a fork (its machine is
not settled then) and while a page fault waits; stopped in order; with the kernel's resend and without.
"""
# timeout: 400 s
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

PATTERN = "/opt/test/pattern"


def verify(daemon, vms, when):
    for vm in vms:
        answer = daemon.exec(vm, PATTERN, "verify")
        expect(answer.startswith("OK "), f"{when}: {vm}: {answer}")


def what_runs(daemon):
    return {vm["name"]: (vm["state"], vm["pid"], vm["parent"], vm["agent"], vm["uuid"])
            for vm in daemon.vms("--all")}


def settled(daemon, vm):
    wait_for(lambda: daemon.inspect(vm).get("frozen", {}).get("settled", True),
             f"{vm}'s frozen machine is settled")


def restart_killed(daemon, family, when):
    before = what_runs(daemon)
    daemon.kill9()
    daemon.start()
    expect_equal(what_runs(daemon), before, f"{when}: ps")
    verify(daemon, family, when)


def waits_for_page(pid):
    """Whether a thread of the process is in an uninterruptible wait."""
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            if (task / "stat").read_text().rpartition(")")[2].split()[0] == "D":
                return True
        except OSError:
            pass
    return False


def check(resend):
    settings = {} if resend else {"use_resend": "false"}
    with Daemon(images=["tiny"], settings=settings) as daemon:
        daemon.run_vm("tiny", name="a")
        daemon.exec("a", PATTERN, "serve", 24, "churn")
        restart_killed(daemon, ["a"], "booted VM")

        # Not settled yet: the memory still is in the stopped QEMU.
        clones = daemon.fork("a", 2)
        family = ["a", *clones]
        restart_killed(daemon, family, "right after a fork")
        grandchildren = daemon.fork(clones[0], 1)
        family += grandchildren
        daemon.exec(grandchildren[0], PATTERN, "own", 7)
        restart_killed(daemon, family, "right after a clone's fork")
        for vm in family:
            settled(daemon, vm)
        restart_killed(daemon, family, "all settled")

        # A snapshot in use; a reserved ticket, which is given back; a forked one, which is joined.
        daemon.snow("snapshot", "a", "kept")
        started = daemon.snow("run", "--detach", "--from", "kept", "-o", "name").split()
        family += started
        ticket = daemon.snow_json("reserve", "a", "-n", 1)["ticket"]
        forked = daemon.snow_json("fork", "a", "-n", 1)
        family.append(forked["clones"][0]["name"])
        mark = daemon.log_path.stat().st_size
        restart_killed(daemon, family, "with a snapshot and tickets")
        log = daemon.log_path.read_bytes()[mark:].decode()
        expect(f"ticket {ticket}: its waiting QEMUs are given back" in log,
               f"the log does not say that ticket {ticket} was given back")
        daemon.snow_fails("fork", "a", "--ticket", ticket, code=3, says=ticket)
        daemon.snow_fails("snapshot", "rm", "kept", code=7, says="kept")
        clone = family.pop()
        daemon.snow("kill", clone)
        joined = daemon.snow_json("join", forked["ticket"])
        ends = [end["how"] for end in joined.get("clones", joined)]
        expect_equal(ends, ["killed"], "join after the restart")

        # A guest's read that nobody answers: it waits for the next daemon.
        # (What the pattern program rewrites, the parent reads too: then it is in the page cache.)
        daemon.shell("a", "dd if=/dev/urandom of=/tmp/cold bs=1M count=8 2>/dev/null")
        digest = daemon.shell("a", "md5sum /tmp/cold")
        fresh = daemon.fork("a", 1)[0]
        family.append(fresh)
        pid = daemon.inspect(fresh)["pid"]
        daemon.shell(fresh, "(sleep 1; md5sum /tmp/cold >/tmp/digest) >/dev/null 2>&1 &")
        daemon.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: waits_for_page(pid), "a page fault of the clone waits", 60, 0.02)
        daemon.kill9()
        daemon.start()
        wait_for(lambda: daemon.shell(fresh, "cat /tmp/digest", check=False) == digest,
                 "the guest that waited read what its parent had written")
        verify(daemon, family, "a fault in flight")

        # In order: the same, and nothing was lost in between.
        before = what_runs(daemon)
        daemon.restart()
        expect_equal(what_runs(daemon), before, "orderly restart: ps")
        verify(daemon, family, "orderly restart")
        more = daemon.fork(grandchildren[0], 1)
        verify(daemon, more, "a fork after all restarts")


def main():
    for resend in (True, False):
        check(resend)
        print(f"ok with use_resend={resend}", flush=True)


if __name__ == "__main__":
    main()
