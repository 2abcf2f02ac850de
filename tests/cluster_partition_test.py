#!/usr/bin/env python3
"""A host that is cut off from its cluster, and a cluster without its etcd: no VM runs twice, all recovers.

A short partition loses nothing. One of more than two lease lengths does: the parent's join says
"lost" for the clones there, `snow host ls` says gone, and the cut-off host is fenced: its VMs run on,
new ones are refused. Healed, it ends the clones that were given up, keeps its own VMs, and is
alive again. While etcd is down all VMs go on, nothing new is started on any host, and after its
return everything works as before, without a restart.
"""
# timeout: 300 s
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowlab import Lab  # noqa: E402
from snowtest import expect, expect_equal, wait_for  # noqa: E402

PATTERN = "/opt/test/pattern"
MIB = 8
LEASE_S = 3
UNAVAILABLE = 12  # docs/errors.md


def verify(host, *vms):
    for vm in vms:
        answer = host.daemon.exec(vm, PATTERN, "verify")
        expect(answer.startswith("OK "), f"{vm}: {answer}")


def states(host):
    """{host's name: its state}, as this host sees it."""
    return {one["name"]: one["state"] for one in host.snow_json("host", "ls")}


def is_fenced(host):
    return states(host)[host.name] == "fenced"


def all_alive(lab):
    wanted = {host.name: "alive" for host in lab.hosts}
    wait_for(lambda: all(states(host) == wanted for host in lab.hosts), "all hosts are alive")


def refused(host):
    """A fenced host starts nothing, and says why."""
    host.snow_fails("run", "--detach", "tiny", code=UNAVAILABLE, says="fenced")


def fork_to(lab, *hosts):
    """A clone on each of the hosts, whole; their names and ticket."""
    first = lab.hosts[0]
    names = ",".join(host.name for host in hosts)
    clones = first.daemon.fork("parent", len(hosts), "--hosts", names)
    verify(first, *clones)
    for clone in clones:
        first.snow("vm", "detach", clone)
    return clones, first.daemon.inspect(clones[0])["ticket"]


def owned(lab):
    """The ids of the VMs that the directory knows."""
    script = ("import base64, json, sys, urllib.request as web\n"
              "code = lambda text: base64.b64encode(text).decode()\n"
              "ask = json.dumps({'key': code(b'/snow/'), 'range_end': code(b'/snow0'),"
              " 'keys_only': True}).encode()\n"
              "answer = json.load(web.urlopen(sys.argv[1] + '/v3/kv/range', ask, 10))\n"
              "print(*(base64.b64decode(one['key']).decode() for one in answer['kvs']))")
    keys = lab.etcd.run([sys.executable, "-c", script, lab.etcd.url]).stdout.split()
    return {key.rpartition("/")[2] for key in keys if "/vm/" in key}


def directory_agrees(lab):
    """Every VM that runs has its owner, and no other is on record."""
    def agrees():
        return owned(lab) == {vm["id"] for vm in lab.hosts[0].snow_json("ps")}
    wait_for(agrees, "the directory has the VMs that run, and no others")


def ends(host, ticket):
    return sorted(end["how"] for end in host.snow_json("join", ticket)["clones"])


def short_partition(lab):
    first, second, _third = lab.hosts
    (clone,), ticket = fork_to(lab, second)
    lab.partition(second)
    time.sleep(LEASE_S / 2)
    lab.heal(second)
    all_alive(lab)
    verify(first, clone, "parent")
    first.daemon.exec(clone, PATTERN, "own", 5)
    verify(second, clone)
    first.snow("ticket", "kill", ticket)
    expect_equal(ends(first, ticket), ["killed"], "ends after a short partition")


def long_partition(lab):
    first, second, third = lab.hosts
    (given_up, other), ticket = fork_to(lab, third, second)
    places = {vm["name"]: vm["host"] for vm in first.snow_json("ps")}
    if places[given_up] != "h2":
        given_up, other = other, given_up
    third.daemon.run_vm("tiny", name="own")
    lab.partition(third)
    wait_for(lambda: is_fenced(third), "the cut-off host is fenced")
    refused(third)
    verify(third, given_up)
    third.daemon.exec("own", "true")
    wait_for(lambda: states(first)["h2"] == "gone", "the others say that it is gone")
    first.snow("kill", other)
    expect_equal(ends(first, ticket), ["killed", "lost"], "ends of the clones")
    expect("h2" not in {vm["host"] for vm in first.snow_json("ps")}, "a VM of a host that is gone")
    verify(third, given_up)  # it cannot know yet
    lab.heal(third)
    all_alive(lab)
    wait_for(lambda: given_up not in [vm["name"] for vm in third.snow_json("ps", "-a")],
             "the clone that was given up is ended, and forgotten as its ticket is")
    third.daemon.exec("own", "true")
    expect_equal({vm["name"]: vm["host"] for vm in second.snow_json("ps")},
                 {"parent": "h0", "own": "h2"}, "what runs in the end")
    (clone,), ticket = fork_to(lab, third)
    first.snow("kill", clone)
    expect_equal(ends(first, ticket), ["killed"], "a clone on the host that is back")
    third.snow("rm", "--force", "own")


def etcd_is_down(lab):
    first, second, third = lab.hosts
    clones, ticket = fork_to(lab, second, third)
    lab.etcd.stop()
    for host in lab.hosts:
        wait_for(lambda: is_fenced(host), f"{host.name} is fenced without etcd")
        refused(host)
    first.snow_fails("fork", "parent", "-n", 1, "--hosts", "h1", code=UNAVAILABLE, says="fenced")
    first.snow_fails("fork", "parent", "-n", 1, code=UNAVAILABLE, says="fenced")
    verify(first, "parent", *clones)
    first.snow("kill", clones[0])  # its owner is told to the directory later
    lab.etcd.start()
    all_alive(lab)
    verify(second, "parent", clones[1])
    more, _ = fork_to(lab, second, third)
    verify(third, *more)
    first.snow("kill", clones[1])
    expect_equal(ends(first, ticket), ["killed", "killed"], "ends after etcd is back")


def main():
    with Lab(hosts=3, settings={"lease_seconds": LEASE_S}) as lab:
        lab.make_cluster()
        lab.hosts[0].daemon.run_vm("tiny", name="parent")
        lab.hosts[0].daemon.exec("parent", PATTERN, "serve", MIB, "churn")
        for check in (short_partition, long_partition, etcd_is_down):
            begin = time.monotonic()
            check(lab)
            directory_agrees(lab)
            print(f"{check.__name__} {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
