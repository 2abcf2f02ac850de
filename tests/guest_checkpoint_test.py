#!/usr/bin/env python3
"""Checkpoints, of which clones are made later and more than once, and clones of clones."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal  # noqa: E402

CALLER = "/opt/test/caller"
DEPTH = 5


def lines(daemon, vm, *ops):
    return daemon.exec(vm, CALLER, *ops).splitlines()


def checkpoint_twice(daemon):
    """Clones of a checkpoint have its state, also when the parent has gone on; twice alike."""
    daemon.shell("a", "echo old >/tmp/state; echo old >/data/state; sync")
    got = lines(daemon, "a", "checkpoint", "nonce", "threads:1", "ticket:2", "create", "join",
                "shell:echo new >/tmp/state; echo new >/data/state; sync",
                "ticket:1", "create", "join", "say:{nonce}",
                "else", "exit:0:{nonce} {id} {shell:cat /tmp/state /data/state | xargs}")
    expect_equal(got[0:3] + got[5:7], ["checkpoint 0", "ticket 2 2", "created 2", "ticket 1 1",
                                       "created 1"], "output")
    joined = [got[3], got[4], got[7]]
    expect_equal([line.split(" ", 5)[5] for line in joined],
                 ["1 old old", "2 old old", "1 old old"],
                 f"state of the clones: {joined}")
    nonces = {line.split()[4] for line in joined}
    expect_equal(len(nonces), 1, f"the program that made the checkpoint, in each clone: {nonces}")
    expect(got[8] not in nonces, "the parent went on after the checkpoint")
    expect_equal(daemon.shell("a", "cat /tmp/state"), "new", "the parent's own state")


def limits_of_checkpoints(daemon):
    got = lines(daemon, "a", *["checkpoint"] * 20)
    kept = [line for line in got if line == "checkpoint 0"]
    expect(1 <= len(kept) < 20, f"a limit of checkpoints: {got}")
    expect(got[-1].startswith("refused checkpoint no_room"), got[-1])


def deepest(daemon):
    """The deepest clone's result, handed up through all the others."""
    ops = []
    for level in range(1, DEPTH + 1):
        ops += [f"append:{level}", "ticket:1", "clone", "join",
                "exit:{id}:{info} [{text}] < {joined}", "else"]
    got = lines(daemon, "a", *ops, "exit:{id}:{info} [{text}]")
    chain = got[2].split(" ", 4)[4].split(" < ")
    expect_equal(len(chain), DEPTH, f"levels in {got[2]}")
    name = daemon.inspect("a")["name"]
    for level, link in enumerate(chain, start=1):
        text = "".join(map(str, range(1, min(level + 1, DEPTH) + 1)))
        expect(link.endswith(f" 1 {level} [{text}]"), f"level {level}: {link}")
        expect(link.startswith(f"{name}."), f"name at level {level}: {link}")


def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="a")
        for part in (checkpoint_twice, deepest, limits_of_checkpoints):
            print(part.__name__, flush=True)
            part(daemon)


if __name__ == "__main__":
    main()
