#!/usr/bin/env python3
"""The host that a clone's pages come from dies, or the one that gets them: no wrong byte, no lost VM.

The origin's snowd is killed -9 while clones elsewhere lack pages: their reads wait, `snow ps` on any
host says for which host, and when it is back every page verifies. The receiving host's snowd is
killed -9 too, more than once: its clones go on with what it had fetched. A
clone that has fetched everything (`snow vm detach`) outlives its origin's power; one that has not
is shown as waiting, gets nothing wrong, and can be killed.
"""
# timeout: 300 s
import concurrent.futures
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowlab import Lab  # noqa: E402
from snowtest import CommandFailed, expect, expect_equal, wait_for  # noqa: E402

PATTERN = "/opt/test/pattern"
MIB = 16
# Only what a guest reads is fetched: there is something to wait for.
SETTINGS = {"fill_after_seconds": 3600, "multicast": "false"}


def verify(host, *vms):
    for vm in vms:
        answer = host.daemon.exec(vm, PATTERN, "verify")
        expect(answer.startswith("OK "), f"{vm}: {answer}")


def waits_for(host, vm):
    """Which host the VM is said to wait for; None: it does not wait."""
    return next(one["waiting_for"] for one in host.snow_json("ps") if one["name"] == vm)


def fork_to(lab, *hosts):
    """A clone on each of the hosts, in their order, with hardly any page fetched."""
    first = lab.hosts[0]
    clones = first.daemon.fork("parent", len(hosts), "--hosts", ",".join(one.name for one in hosts))
    by_host = {vm["host"]: vm["name"] for vm in first.snow_json("ps") if vm["name"] in clones}
    for clone in clones:
        first.daemon.exec(clone, "true")
    return [by_host[host.name] for host in hosts]


def remote_memory(host, vm):
    return [layer for image in host.daemon.inspect(vm)["images"] if image["kind"] == "memory"
            for layer in image["remote"]]


def lacks_pages(host, vm):
    layers = remote_memory(host, vm)
    expect(not any(layer["origin_lacks_it"] for layer in layers), f"{vm}: {layers}")
    expect(any(not layer["complete"] for layer in layers), f"{vm} has all pages already: {layers}")


def origin_killed(lab, pool):
    first, second, third = lab.hosts
    clone, other = fork_to(lab, second, third)
    first.daemon.kill9()
    lacks_pages(second, clone)
    verifies = pool.submit(verify, second, clone)
    wait_for(lambda: waits_for(third, clone) == "h0", "h2 says that the clone on h1 waits for h0")
    expect("waits for h0" in third.snow("ps"), f"the table for people: {third.snow('ps')}")
    expect(not verifies.done(), "pages that nobody could give were read")
    first.daemon.start()
    verifies.result()
    expect_equal(waits_for(third, clone), None, "after the origin is back")
    first.daemon.wait_agent("parent")
    verify(first, "parent", clone, other)
    return clone, other


def receiver_killed(lab):
    first, second, _third = lab.hosts
    (clone,) = fork_to(lab, second)
    for _ in range(3):
        second.daemon.kill9()
        second.daemon.start()
        second.daemon.wait_agent(clone)
    lacks_pages(second, clone)
    verify(first, clone)
    second.daemon.restart()
    second.daemon.wait_agent(clone)
    verify(second, clone)


def both_killed(lab, pool):
    """The receiving host's snowd dies while reads wait for the origin's.

    A QEMU whose guest waits for a page may hold its own lock and not answer the next daemon."""
    first, second, third = lab.hosts
    (clone,) = fork_to(lab, second)
    first.daemon.kill9()
    broken = pool.submit(verify, second, clone)
    wait_for(lambda: waits_for(third, clone) == "h0", "the clone waits for h0")
    second.daemon.kill9()
    expect(isinstance(broken.exception(), CommandFailed), "exec through a killed daemon")
    second.daemon.start()
    wait_for(lambda: waits_for(third, clone) == "h0", "the clone waits for h0 under the next daemon")
    first.daemon.start()
    wait_for(lambda: waits_for(third, clone) is None, "the clone does not wait any more")
    third.daemon.wait_agent(clone)
    verify(third, clone, "parent")


def power_cut(lab, pool):
    first, second, third = lab.hosts
    whole, partial = fork_to(lab, second, third)
    second.snow("vm", "detach", whole)
    lacks_pages(third, partial)
    first.cut()
    verify(second, whole)
    second.daemon.exec(whole, PATTERN, "own", 9)
    verify(third, whole)
    waiting = pool.submit(verify, third, partial)
    wait_for(lambda: waits_for(second, partial) == "h0", "the other clone waits for h0")
    expect(not waiting.done(), "pages that nobody could give were read")
    first.boot()
    first.daemon.start()
    wait_for(lambda: all(one["state"] == "alive" for one in second.snow_json("host", "ls")),
             "h0 is back")
    verify(first, whole)
    wait_for(lambda: waits_for(first, partial) == "h0", "what h0 had is gone for good")
    wait_for(lambda: any(layer["origin_lacks_it"] for layer in remote_memory(third, partial)),
             "h0 has said so")
    second.snow("kill", partial)
    expect(isinstance(waiting.exception(), CommandFailed), "verify in a killed clone")


def main():
    with Lab(hosts=3, settings=SETTINGS) as lab, concurrent.futures.ThreadPoolExecutor() as pool:
        lab.make_cluster()
        lab.hosts[0].daemon.run_vm("tiny", name="parent")
        lab.hosts[0].daemon.exec("parent", PATTERN, "serve", MIB, "churn")
        for check in (lambda: origin_killed(lab, pool), lambda: receiver_killed(lab),
                      lambda: both_killed(lab, pool), lambda: power_cut(lab, pool)):
            begin = time.monotonic()
            check()
            print(f"{time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
