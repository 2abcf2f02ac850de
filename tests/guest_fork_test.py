#!/usr/bin/env python3
"""A program in the guest forks its machine: clone, exit, join, kill; and what is refused."""
import os
import pathlib
import signal
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

CALLER = "/opt/test/caller"
MOST = 16 << 20


def lines(daemon, vm, *ops):
    return daemon.exec(vm, CALLER, *ops).splitlines()


def names(daemon):
    return {vm["name"]: vm for vm in daemon.vms()}


def clones_of(daemon, parent):
    """The running clones of a VM, by their index."""
    return {vm["index"]: vm for vm in daemon.vms() if vm["parent"] == parent["id"]}


def results_come_back_in_order(daemon):
    got = lines(daemon, "a", "ticket:3", "clone", "join", "join", "clone",
                "else", "exit:-{id}:from {id}, {nonce}")
    expect_equal(got[:2], ["ticket 3 3", "clone 0"], "ticket and clone")
    nonces = {line.split()[-1] for line in got[2:5]}
    expect_equal([line.rsplit(" ", 1)[0] for line in got[2:5]],
                 [f"joined {i} exited -{i} from {i}," for i in (1, 2, 3)], "results of the clones")
    expect_equal(len(nonces), 1, f"one program was cloned, not three started: {nonces}")
    expect(got[5].startswith("refused join not_found"), f"a spent ticket's join: {got[5]}")
    expect(got[6].startswith("refused clone not_found"), f"a spent ticket's clone: {got[6]}")
    expect_equal(list(names(daemon)), ["a"], "VMs after the join")


def exit_status_and_payload(daemon):
    expect_equal(lines(daemon, "a", "ticket:1", "clone", "join", "else", "exit:-7:x")[-1],
                 "joined 1 exited -7 x", "a negative status")
    # 16 MiB pass; one byte more is refused and the clone lives on to say so.
    got = lines(daemon, "a", "ticket:1", "clone", "join", "else", f"payload:{MOST}")
    expect_equal(got[-1], f"joined 1 exited 0 {MOST} right", "a result of 16 MiB")
    got = lines(daemon, "a", "ticket:1", "clone", "join", "else", f"payload:{MOST + 1}",
                "exit:4:still here")
    expect_equal(got[-1], "joined 1 exited 4 still here", "after a result that was too large")


def shell_commands(daemon):
    result = daemon.snow_result("exec", "a", "--", "snow-clone", 3, "--", "sh", "-c",
                                "echo clone {id} of $SNOW_COUNT; echo e{id} >&2; "
                                "exit $(({id} / 3))")
    expect_equal((result.stdout, result.stderr, result.returncode),
                 ("clone 1 of 3\nclone 2 of 3\nclone 3 of 3\n", "e1\ne2\ne3\n", 1), "snow-clone")
    daemon.shell("a", "for i in 1 2 3 4 5; do echo \"echo line $i; sleep 0.$((6 - i))\"; done "
                 ">/tmp/jobs; echo 'exit 4' >>/tmp/jobs")
    result = daemon.snow_result("exec", "a", "--", "snow-parallel", "-j", 2, "/tmp/jobs")
    expect_equal((result.stdout, result.returncode),
                 ("".join(f"line {i}\n" for i in range(1, 6)), 1), "snow-parallel")
    facts = dict(line.split("=", 1) for line in daemon.exec("a", "snow-info").splitlines())
    expect_equal((facts["SNOW_ID"], facts["SNOW_NAME"], facts["SNOW_INDEX"]),
                 (daemon.inspect("a")["id"], "a", "0"), "snow-info")


def fewer_than_asked(daemon):
    """What the host can hold is granted; with EXACT it is all or nothing."""
    got = lines(daemon, "a", "ticket:12:exact", "ticket:12", "kill")
    expect(got[0].startswith("refused ticket no_room"), f"12 of at most 7, exactly: {got[0]}")
    expect_equal(got[1:], ["ticket 7 7", "killed 0"], "12 of at most 7")


def refusals(daemon):
    parent = daemon.inspect("a")
    got = lines(daemon, "a", "ticket:0", "raw:call=ticket,n=0", "ticket:100000",
                "raw:call=ticket,n=-1", "ticket:17", "raw:call=dance", "exit:0:no clone",
                "raw:call=join,ticket=t0",
                "raw:call=create,checkpoint=c0,ticket=t0", "say:{refused}")
    expect_equal(got[-1], "ticket=invalid raw=invalid ticket=invalid raw=invalid ticket=invalid "
                 "raw=usage exit=wrong_state raw=not_found raw=not_found", f"refusals: {got}")

    # A ticket is good once; and its clones cannot join it, nor kill by it.
    got = lines(daemon, "a", "ticket:1", "clone", "clone", "join",
                "else", "join:0", "kill", "clone", "exit:0:{refused}")
    expect(got[2].startswith("refused clone spent"), f"second clone: {got[2]}")
    expect_equal(got[-1],
                 "joined 1 exited 0 join=wrong_state kill=wrong_state clone=wrong_state",
                 "what the clone was refused")
    clone = daemon.fork("a", 1)[0]
    ticket = daemon.inspect(clone)["ticket"]
    daemon.run_vm("tiny", name="stranger")
    for call in ("join", "kill", "clone"):
        got = lines(daemon, "stranger", f"raw:call={call},ticket={ticket}")[0]
        expect(got.startswith("refused raw denied"), f"stranger's {call}: {got}")
    got = lines(daemon, clone, f"raw:call=join,ticket={ticket}", f"raw:call=kill,ticket={ticket}")
    for line in got:
        expect(line.startswith("refused raw wrong_state"), f"from the clone itself: {line}")
    daemon.snow("rm", "--force", "stranger")
    daemon.snow("rm", "--force", clone)
    expect_equal(daemon.inspect("a")["id"], parent["id"], "the parent is who it was")


def in_background(daemon, vm, *ops):
    """Runs the caller meanwhile; a function that gives its lines."""
    got = []
    thread = threading.Thread(target=lambda: got.extend(lines(daemon, vm, *ops)))
    thread.start()

    def result():
        thread.join()
        return got
    return result


def deaths(daemon):
    """Each clone dies in its own way; the join says in which."""
    result = in_background(daemon, "a", "ticket:4", "clone", "join:1", "say:first", "join",
                           "else", "await:/tmp/go", "only:1", "panic")
    parent = daemon.inspect("a")
    clones = wait_for(lambda: (found := clones_of(daemon, parent)) and len(found) == 4 and
                      all(vm["agent"] for vm in found.values()) and found, "four clones")
    daemon.shell(clones[1]["name"], "(sleep 1; touch /tmp/go) >/dev/null 2>&1 &")
    os.kill(daemon.inspect(clones[2]["name"])["pid"], signal.SIGKILL)
    daemon.snow("kill", clones[3]["name"])
    daemon.exec(clones[4]["name"], "sh", "-c", "echo last words | snow-exit 9", check=False)
    got = result()
    expect_equal(got[:2] + got[6:7], ["ticket 4 4", "clone 0", "first"], "output of the parent")
    for line in got[2:6]:
        expect(line.split()[2] in ("running", "exited", "killed", "crashed"), f"early join: {line}")
    expect_equal([" ".join(line.split()[:3]) for line in got[7:]],
                 ["joined 1 crashed", "joined 2 crashed", "joined 3 killed", "joined 4 exited"],
                 "how the clones ended")
    expect_equal(got[10], "joined 4 exited 9 last words", "snow-exit's result")


def timeout_and_kill(daemon):
    got = lines(daemon, "a", "ticket:2", "clone", "join:300", "kill", "join", "else", "pause")
    expect_equal(got[2:], ["joined 1 running 0", "joined 2 running 0", "killed 2",
                           "joined 1 killed 9", "joined 2 killed 9"], "timeout, kill, join")
    # An unused ticket ends with kill too; then there is nothing left of it.
    got = lines(daemon, "a", "ticket:2", "kill", "clone")
    expect_equal(got[1], "killed 0", "kill of an unused ticket")
    expect(got[2].startswith("refused clone not_found"), f"clone after it: {got[2]}")
    wait_for(lambda: daemon.snow_json("ticket", "ls") == [], "no ticket is left")


def main():
    with Daemon(images=["tiny"], settings={"fork_limit": 16, "vm_limit": 8}) as daemon:
        daemon.run_vm("tiny", name="a")
        for part in (results_come_back_in_order, exit_status_and_payload, shell_commands,
                     fewer_than_asked, refusals, deaths, timeout_and_kill):
            print(part.__name__, flush=True)
            part(daemon)


if __name__ == "__main__":
    main()
