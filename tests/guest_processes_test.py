#!/usr/bin/env python3
"""A fork clones every process and thread, on several vCPUs, and disturbs none in the parent."""
import pathlib
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

CALLER = "/opt/test/caller"


def lines(daemon, vm, *ops):
    return daemon.exec(vm, CALLER, *ops).splitlines()


def several_cpus(daemon):
    got = lines(daemon, "b", "threads:3", "ticket:2:hier", "clone", "join", "say:{threads}",
                "else", "exit:{id}:{id} {pid}")
    expect_equal(got[0], "ticket 2 4", "processes of two clones with two vCPUs")
    expect_equal([line.split()[:5] for line in got[2:6]],
                 [["joined", str(i), "exited", str(i), str(i)] for i in (1, 2, 3, 4)],
                 "hierarchical")
    pids = [line.split()[5] for line in got[2:6]]
    expect(pids[0] != pids[1] and pids[2] != pids[3], f"processes of one clone: {pids}")
    expect_equal(got[6], "alive 3", "the parent's threads")
    # Without it every thread of the caller is in each clone; and a machine with two vCPUs forks.
    got = lines(daemon, "b", "threads:3", "ticket:2", "clone", "join", "else", "exit:0:{threads}")
    expect_equal(got[2:], ["joined 1 exited 0 alive 3", "joined 2 exited 0 alive 3"], "threads")
    # One process of a hierarchical clone dies: the others' results arrive.
    got = lines(daemon, "b", "ticket:1:hier", "clone", "join",
                "else", "unless:1", "die", "exit:5:x")
    expect_equal([" ".join(line.split()[:3]) for line in got[2:]],
                 ["joined 1 exited", "joined 2 crashed"], "a process that dies")


def others_go_on(daemon):
    """What else runs in the guest goes on in parent and clones: a program that forks all the time,
    an exec that sends output, one that takes input."""
    daemon.shell("b", f"{CALLER} forks:/tmp/forked >/dev/null 2>&1 &")
    results = {}

    def run(key, *argv, stdin=None):
        results[key] = daemon.exec("b", *argv, stdin=stdin)
    text = "".join(f"line {i}\n" for i in range(20_000))
    threads = [
        threading.Thread(target=run, args=(
            "out", "sh", "-c", "i=0; while [ $i -lt 15000 ]; do echo line $i; i=$((i+1)); done")),
        threading.Thread(target=run, kwargs={"stdin": text}, args=(
            "in", "sh", "-c", "while read -r a b; do n=$((n+b)); done; echo $n"))]
    for thread in threads:
        thread.start()
    wait_for(lambda: daemon.shell("b", "cat /tmp/forked 2>/dev/null", check=False),
             "the forking program")
    for _ in range(3):
        got = lines(daemon, "b", "ticket:2", "clone", "join",
                    "else", "exit:0:{grows:/tmp/forked}")
        expect_equal(got[2:], ["joined 1 exited 0 grows", "joined 2 exited 0 grows"],
                     "the forking program in the clones")
    for thread in threads:
        thread.join()
    expect_equal(results["out"], "\n".join(f"line {i}" for i in range(15_000)),
                 "output over forks")
    expect_equal(results["in"], str(sum(range(20_000))), "input over forks")
    before = int(daemon.shell("b", "cat /tmp/forked") or 0)
    wait_for(lambda: int(daemon.shell("b", "cat /tmp/forked") or 0) > before,
             "the forking program goes on in the parent")


def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="b", cpus=2)
        for part in (several_cpus, others_go_on):
            print(part.__name__, flush=True)
            part(daemon)


if __name__ == "__main__":
    main()
