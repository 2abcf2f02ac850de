#!/usr/bin/env python3
"""The lab is what it says: a network with the rate, loss and partitions that were asked for.

Four hosts with a snowd each and an etcd: every host reaches the others and etcd, a shaped link gives its
rate and no more, multicast reaches all hosts or none, as told, packets get lost, come twice or out of order
as told, a host that is cut off hears nothing until it is healed, daemons run side by side, and a host
that loses its power comes back with its disk. A lab that is killed, with its supervisor or without,
leaves nothing.
"""
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
import leaks  # noqa: E402
from snowlab import Lab  # noqa: E402
from snowtest import ROOT, expect, expect_equal, processes_with, wait_for  # noqa: E402
from lab.supervisor import CGROUPS, cgroup_of  # noqa: E402
from lab.probe import Server, datagrams  # noqa: E402

GROUP = "239.77.1.1"
COUNT = 2000
RATE_MBIT = 200


def near(value, wanted, tolerance, what):
    expect(abs(value - wanted) <= tolerance, f"{what}: {value:.2f}, not {wanted} +- {tolerance}")


def check_links(lab):
    """The rates are upper limits that a busy machine may miss a little, never exceed."""
    first, second = lab.hosts[:2]
    with Server(lab.build_dir, first) as server:
        shaped = server.stream(second, 12 << 20)["mbit_s"]
        expect(0.6 < shaped / RATE_MBIT < 1.02, f"a link of {RATE_MBIT} Mbit/s gives {shaped}")
        rtt = server.rtt(second, 2000)
        expect(rtt["p50_us"] < 5000, f"4 KiB request and reply: {rtt}")
        lab.set_rate(first, None)
        lab.set_rate(second, None)
        free = server.stream(second, 256 << 20)["mbit_s"]
        expect(free > 3 * RATE_MBIT, f"without a limit: {free} Mbit/s")
        traffic = lab.traffic()["h1"]["received"]
        expect(268 << 20 <= traffic < 330 << 20, f"h1 received {traffic} bytes on the wire")
    print(f"shaped to {RATE_MBIT}: {shaped:.0f} Mbit/s; open: {free:.0f}; 4 KiB p50 {rtt['p50_us']} us")


def check_multicast(lab):
    sender, *others = lab.hosts
    for got in datagrams(sender, others, GROUP, COUNT):
        expect(got["distinct"] >= 0.99 * COUNT, f"multicast: {got} of {COUNT}")
        expect_equal(got["late"], 0, "packets out of order without a cause")
    lab.multicast(False)
    for got in datagrams(sender, others, GROUP, 100):
        expect_equal(got["received"], 0, "where multicast does not pass")
    expect(datagrams(sender, others[:1], count=100)[0]["received"] == 100, "unicast passes")
    lab.multicast(True)


def check_faults(lab):
    sender, lossy, doubled, mixed = lab.hosts
    lab.loss(lossy, 20, "to")
    lab.duplicate(doubled, 10)
    lab.reorder(mixed, 5)
    got = datagrams(sender, [lossy, doubled, mixed], GROUP, COUNT)
    print(f"of {COUNT}: 20 % lost {got[0]}, 10 % twice {got[1]}, 5 % late {got[2]}")
    near(got[0]["received"] / COUNT, 0.80, 0.04, "arrived where 20 % get lost")
    near(got[1]["received"] / COUNT, 1.10, 0.03, "arrived where 10 % come twice")
    expect(got[2]["late"] >= 0.01 * COUNT, f"out of order where 5 % are held back: {got[2]}")
    expect(got[2]["distinct"] >= 0.99 * COUNT, f"held back, but not lost: {got[2]}")
    lab.loss(lossy, 0)
    lab.loss(lossy, 5, "from")
    near(datagrams(lossy, [sender], count=COUNT)[0]["received"] / COUNT, 0.95, 0.025,
         "arrived from a host that loses 5 %")
    lab.loss(lossy, 0)
    lab.duplicate(doubled, 0)
    lab.reorder(mixed, 0)
    got = datagrams(sender, [lossy, doubled, mixed], GROUP, COUNT)
    expect(all(one["received"] == one["distinct"] and one["late"] == 0 for one in got), f"{got}")


def check_partition(lab):
    first, second, third = lab.hosts[:3]

    def reach(sender, receiver):
        return datagrams(sender, [receiver], count=20)[0]["received"] > 0

    def etcd_from(host):
        return host.run([sys.executable, "-c", "import socket,sys; socket.create_connection("
                         "(sys.argv[1], 2379), 1)", lab.etcd.address], check=False).returncode == 0
    expect(all(etcd_from(host) for host in lab.hosts), "etcd is reached from every host")
    lab.partition(second)
    expect(not reach(first, second) and not reach(second, first), "a host that is cut off")
    expect(reach(first, third), "the others")
    expect(not etcd_from(second), "etcd from a host that is cut off")
    lab.heal(second)
    expect(reach(first, second) and etcd_from(second), "healed")
    lab.partition(second, [lab.etcd])
    expect(reach(first, second) and not etcd_from(second), "cut off from etcd only")
    lab.heal(second)
    lab.etcd.stop()
    expect(not etcd_from(first), "etcd is down")
    lab.etcd.start()
    expect(etcd_from(first), "etcd is back")


def check_daemons(lab):
    first, second = lab.hosts[:2]
    first.daemon.run_vm("tiny", name="a")
    expect_equal(first.daemon.exec("a", "hostname"), "a", "in a guest of h0")
    expect_equal([vm["name"] for vm in first.daemon.vms()], ["a"], "VMs of h0")
    expect_equal(second.daemon.vms(), [], "VMs of h1")
    expect_equal(first.run(["hostname"]).stdout.strip(), "h0", "the host's own name")
    second.daemon.kill9()
    second.daemon.start()
    first.cut()
    first.boot()
    first.daemon.start()
    expect("tiny" in first.snow("image", "ls"), "the image is there after the power was gone")
    expect(not [vm for vm in first.daemon.vms() if vm["state"] == "running"], "a VM survived")


USER = """
import sys, time
sys.path[:0] = [sys.argv[1]]
from snowlab import Lab
with Lab(hosts=2) as lab:
    lab.hosts[0].daemon.run_vm("tiny", agent=False)
    lab.hosts[1].popen(["sleep", "600"], spaces=("net",))
    nodes = [*lab.hosts, lab.etcd, lab.network.fabric]
    print(lab.name, lab.process.pid, *(node.pid for node in nodes), flush=True)
    time.sleep(600)
"""


def check_kills():
    """Somebody's lab is killed at its worst: interfaces, etcd, daemon and guest are there."""
    for with_supervisor in (False, True):
        before = leaks.snapshot()
        with subprocess.Popen([sys.executable, "-c", USER, ROOT / "tests/lib"], text=True,
                              stdout=subprocess.PIPE) as user:
            name, supervisor, *hosts = user.stdout.readline().split()
            spaces = set().union(*map(leaks.namespaces_of, hosts)) - before
            expect(len(spaces) >= 3 * len(hosts), f"namespaces of {len(hosts)} hosts: {spaces}")
            if with_supervisor:
                os.kill(int(supervisor), 9)
            user.kill()
        if with_supervisor:
            wait_for(lambda: name in subprocess.run(
                [ROOT / "lab/lab", "clean"], check=True, text=True, stdout=subprocess.PIPE).stdout,
                "lab clean removes the folder", 20)

        def left():
            now = leaks.snapshot()
            groups = {f"control group {folder}/{cgroup_of(f'/run/{name}/h0')}" for folder in CGROUPS}
            return sorted(thing for thing in now if name in thing or thing in spaces | groups)
        wait_for(lambda: not left() and not processes_with(name), f"nothing of {name} is left", 20)


def main():
    start = time.monotonic()
    with Lab(hosts=4, rate=f"{RATE_MBIT}mbit") as lab:
        print(f"up after {time.monotonic() - start:.1f} s")
        for check in (check_links, check_multicast, check_faults, check_partition, check_daemons):
            begin = time.monotonic()
            check(lab)
            print(f"{check.__name__} {time.monotonic() - begin:.1f} s", flush=True)
    check_kills()
    print(f"all {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
