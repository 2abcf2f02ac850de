#!/usr/bin/env python3
"""Packets get lost, come twice and out of order while a VM forks over three hosts: nothing goes wrong.

With 1, 5 and 20 percent of the packets lost on their way to each host and to etcd, and others
doubled and reordered, with multicast passing and not passing: clones come up on all hosts, every
page of each verifies, what they return arrives, and the host's join gets all ends. A fork may be
refused when the directory or a host does not answer in time; that changes nothing, and it is asked again.
"""
# timeout: 480 s
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowlab import Lab, on_all  # noqa: E402
from snowtest import CommandFailed, expect, expect_equal  # noqa: E402

PATTERN = "/opt/test/pattern"
MIB = 2
TRIES = 6
PLACES = ["h0", "h1", "h2"]
# Percent lost, doubled, reordered; whether multicast passes.
BAD_LUCK = ((1, 1, 1, True), (5, 5, 5, False), (20, 5, 5, True))


def verify(host, *vms):
    for vm in vms:
        answer = host.daemon.exec(vm, PATTERN, "verify")
        expect(answer.startswith("OK "), f"{vm}: {answer}")


def make_network(lab, loss, twice, late, multicast):
    for node in [*lab.hosts, lab.etcd]:
        lab.loss(node, loss, "to")  # once for each packet, whichever way it goes
        lab.duplicate(node, twice)
        lab.reorder(node, late)
    lab.multicast(multicast)


def until_taken(lab, what):
    """what(), again when it was refused; the parent is as it was then."""
    for attempt in range(1, TRIES + 1):
        try:
            return what()
        except CommandFailed as refusal:
            print(f"refused: {refusal.err.strip()}", flush=True)
            if attempt == TRIES:
                raise
            verify(lab.hosts[0], "parent")


def fork_from_host(lab):
    """Clones everywhere, each verified on its host; their ends come back."""
    first = lab.hosts[0]
    forked = until_taken(lab, lambda: first.snow_json("fork", "parent", "-n", 3, "--spread"))
    expect_equal(sorted(clone["host"] for clone in forked["clones"]), PLACES, "places of the clones")
    by_name = {host.name: host for host in lab.hosts}
    on_all(forked["clones"], lambda clone: verify(by_name[clone["host"]], clone["name"]))
    for clone in forked["clones"]:
        by_name[clone["host"]].snow("kill", clone["name"])
    ends = first.snow_json("join", forked["ticket"])["clones"]
    expect_equal([end["how"] for end in ends], ["killed"] * 3, "ends of the clones")


def fork_from_inside(lab):
    out = until_taken(lab, lambda: lab.hosts[0].daemon.exec(
        "parent", "snow-clone", "--spread", "3", "--", "sh", "-c", "echo result of {id}"))
    expect_equal(sorted(line for line in out.splitlines() if line.startswith("result")),
                 [f"result of {index}" for index in (1, 2, 3)], "results of the clones")


def main():
    with Lab(hosts=3, settings={"multicast_hosts": 2}) as lab:
        lab.make_cluster()
        first = lab.hosts[0]
        first.daemon.run_vm("tiny", name="parent")
        first.daemon.exec("parent", PATTERN, "serve", MIB, "churn")
        for luck in BAD_LUCK:
            begin = time.monotonic()
            make_network(lab, *luck)
            fork_from_host(lab)
            half = time.monotonic()
            fork_from_inside(lab)
            print(f"loss {luck[0]} %, multicast {luck[3]}: {half - begin:.1f} + "
                  f"{time.monotonic() - half:.1f} s", flush=True)
        make_network(lab, 0, 0, 0, True)
        verify(first, "parent")


if __name__ == "__main__":
    main()
