#!/usr/bin/env python3
"""A VM forks over the hosts of a cluster, and is one family for whoever looks from any of them.

Three hosts with etcd beside them. A program in the guest has memory that exists in RAM only; clones on
all hosts have it whole, and each goes on by itself. Their own clones on a third host have theirs.
Results, kill and checkpoints work across hosts, from the host and from inside the guest.
"""
# timeout: 600 s
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowlab import Lab  # noqa: E402
from snowtest import expect, expect_equal, wait_for  # noqa: E402

PATTERN = "/opt/test/pattern"
MIB = 24


def verify(host, vms):
    for vm in vms:
        answer = host.daemon.exec(vm, PATTERN, "verify")
        expect(answer.startswith("OK "), f"{vm}: {answer}")


def hosts_of(lab, vms):
    """{VM's name: name of its host}, as every host of the lab sees it."""
    seen = [{vm["name"]: vm["host"] for vm in host.snow_json("ps") if vm["name"] in vms}
            for host in lab.hosts]
    for other in seen[1:]:
        expect_equal(other, seen[0], "what the hosts say of each other's VMs")
    return seen[0]


def forks_everywhere(lab):
    first = lab.hosts[0]
    first.daemon.run_vm("tiny", name="parent")
    first.daemon.exec("parent", PATTERN, "serve", MIB, "churn")
    nonce = first.daemon.exec("parent", PATTERN, "nonce")
    clones = first.daemon.fork("parent", 6, "--spread")
    places = hosts_of(lab, ["parent", *clones])
    expect_equal(sorted(places[clone] for clone in clones), ["h0", "h0", "h1", "h1", "h2", "h2"],
                 "places of six clones, spread over three hosts")
    for vm in clones:
        expect_equal(first.daemon.exec(vm, PATTERN, "nonce"), nonce, f"nonce in {vm}")
    verify(first, ["parent", *clones])
    for tag, vm in enumerate(["parent", *clones], start=1):
        first.daemon.exec(vm, PATTERN, "own", tag)
    verify(lab.hosts[1], ["parent", *clones])
    return clones, places


def forks_again(lab, clones, places):
    """A clone on h1 forks to h2: its pages are found through the chain."""
    there = next(clone for clone in clones if places[clone] == "h1")
    (grandchild,) = lab.hosts[2].daemon.fork(there, 1, "--hosts", "h2")
    expect_equal(hosts_of(lab, [grandchild]), {grandchild: "h2"}, "place of the clone's clone")
    verify(lab.hosts[0], [there, grandchild])
    lab.hosts[0].daemon.exec(grandchild, PATTERN, "own", 77)
    verify(lab.hosts[1], [there, grandchild])


def others_know_what_a_host_keeps(lab, ticket):
    """In the directory: for who asks when that host is gone."""
    def keeps():
        return lab.hosts[2].snow_json("host", "show", "h0")["keeps"]
    ids = {host["name"]: host["id"] for host in lab.hosts[2].snow_json("host", "ls")}
    wait_for(lambda: ticket in keeps()["ticket"], "the ticket is known")
    expect_equal(keeps()["ticket"][ticket]["clones"], dict.fromkeys(ids.values(), 2), "clones by host")
    expect_equal(sorted(keeps()["image"]), ["tiny"], "imported images")
    wait_for(lambda: {holder for image in keeps()["frozen"].values() for holder in image["holders"]}
             == {ids["h1"], ids["h2"]}, "who fetches the frozen machine is known")
    return keeps


def ends_are_told(lab, clones):
    """The host's join and kill, over all hosts."""
    first = lab.hosts[0]
    ticket = first.daemon.inspect(clones[0])["ticket"]
    keeps = others_know_what_a_host_keeps(lab, ticket)
    for clone in clones[:4]:
        lab.hosts[1].snow("kill", clone)
    first.snow("ticket", "kill", ticket)
    ends = first.snow_json("join", ticket)["clones"]
    expect_equal([end["how"] for end in sorted(ends, key=lambda end: end["index"])],
                 ["killed"] * 6, "ends of the clones")
    wait_for(lambda: not [vm for host in lab.hosts for vm in host.snow_json("ps", "-a")
                          if vm["name"] in clones], "the joined clones are forgotten everywhere")
    wait_for(lambda: ticket not in keeps()["ticket"], "the ticket is known no more")


def forks_from_inside(lab):
    """snow-clone in the guest: results come back from the other hosts."""
    first = lab.hosts[0]
    out = first.daemon.exec("parent", "snow-clone", "--spread", "6", "--", "sh", "-c",
                            "echo result of {id}")
    expect_equal(sorted(line for line in out.splitlines() if line.startswith("result")),
                 [f"result of {index}" for index in range(1, 7)], "results of six clones")


def main():
    # Nothing is fetched but what is needed: who has all of it is no holder any more.
    with Lab(hosts=3, settings={"fill_after_seconds": 3600}) as lab:
        lab.make_cluster()
        clones, places = forks_everywhere(lab)
        forks_again(lab, clones, places)
        ends_are_told(lab, clones)
        forks_from_inside(lab)
        verify(lab.hosts[0], ["parent"])


if __name__ == "__main__":
    main()
