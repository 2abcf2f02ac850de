#!/usr/bin/env python3
"""A checkpoint that a guest made is forked later, more than once, on other hosts, always alike.

Which hosts get the clones is steered by draining: twice they are elsewhere, the third time at home.
Every clone has the memory, files and disk of the checkpoint, whatever the parent did since; the
results come back to the program that made the checkpoint.
"""
# timeout: 300 s
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowlab import Lab  # noqa: E402
from snowtest import expect, expect_equal, wait_for  # noqa: E402

CALLER, PATTERN = "/opt/test/caller", "/opt/test/pattern"
MIB = 8
ROUNDS = (("h1", 2), ("h2", 2), ("h0", 1))  # where the clones shall be, how many


def operations():
    """What the program does: a checkpoint, then a round of clones whenever it is told to."""
    ops = ["checkpoint", "nonce", "shell:echo new >/tmp/state; echo new >/data/state; sync"]
    for number, (_, count) in enumerate(ROUNDS):
        ops += [f"await:/tmp/round{number}", f"ticket:{count}", "create", "join"]
    return [*ops, "say:{nonce}", "else", "await:/tmp/leave",
            "exit:0:{nonce} {id} {shell:cat /tmp/state /data/state | xargs}"]


def drain_all_but(lab, name):
    for host in lab.hosts:
        undo = ["--undo"] if host.name == name else []
        lab.hosts[0].snow("host", "drain", *undo, host.name)


def one_round(lab, number, name, count):
    """Clones of the checkpoint on one host: looked at, written to, and sent home."""
    first = lab.hosts[0]
    drain_all_but(lab, name)
    first.daemon.exec("parent", "touch", f"/tmp/round{number}")

    def running():
        clones = {vm["name"]: vm["host"] for vm in first.snow_json("ps")
                  if vm["name"] != "parent" and vm["state"] == "running"}
        return clones if len(clones) == count else None
    clones = wait_for(running, f"{count} clones on {name}")
    expect_equal(set(clones.values()), {name}, f"hosts of {clones}")
    for tag, clone in enumerate(clones, start=10 * number + 1):
        for _ in range(2):  # as it was at the checkpoint; then with what the clone wrote
            answer = first.daemon.exec(clone, PATTERN, "verify")
            expect(answer.startswith("OK "), f"{clone} on {name}: {answer}")
            first.daemon.exec(clone, PATTERN, "own", tag)
    for clone in clones:
        first.daemon.exec(clone, "touch", "/tmp/leave")
    wait_for(lambda: not set(clones) & {vm["name"] for vm in first.snow_json("ps")},
             f"the clones on {name} have left")


def check_output(lines):
    lines = iter(lines)
    expect_equal(next(lines), "checkpoint 0", "first line")
    states, nonces = [], set()
    for _, count in ROUNDS:
        expect_equal([next(lines), next(lines)], [f"ticket {count} {count}", f"created {count}"],
                     "ticket and clones")
        for _ in range(count):
            nonce, state = next(lines).split(" ", 5)[4:]
            states.append(state)
            nonces.add(nonce)
    expect_equal(states, ["1 old old", "2 old old"] * 2 + ["1 old old"], "states of the clones")
    expect_equal(len(nonces), 1, f"the program that made the checkpoint, in each clone: {nonces}")
    expect(next(lines) not in nonces, "the parent went on after the checkpoint")


def main():
    with Lab(hosts=3) as lab:
        lab.make_cluster()
        first = lab.hosts[0].daemon
        first.run_vm("tiny", name="parent")
        first.exec("parent", PATTERN, "serve", MIB, "churn")
        first.shell("parent", "echo old >/tmp/state; echo old >/data/state; sync")
        program = subprocess.Popen(first.snow_command("exec", "parent", "--", CALLER, *operations()),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: first.shell("parent", "cat /tmp/state") == "new", "the checkpoint")
            for number, (name, count) in enumerate(ROUNDS):
                one_round(lab, number, name, count)
            out, _ = program.communicate(timeout=60)
        finally:
            program.kill()
            program.communicate()
        print(out, end="", flush=True)
        check_output(out.splitlines())
        answer = first.exec("parent", PATTERN, "verify")
        expect(answer.startswith("OK "), f"the parent: {answer}")


if __name__ == "__main__":
    main()
