#!/usr/bin/env python3
"""After a fork everybody is somebody else: random numbers, names, ids, clock, parameters, hooks."""
import pathlib

import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

CALLER = "/opt/test/caller"
KEYS = ("SNOW_ID", "SNOW_NAME", "SNOW_INDEX", "SNOW_TICKET", "SNOW_PARENT", "SNOW_UUID")

def params(daemon, vm):
    """/run/snow/params, as a shell reads it."""
    text = daemon.shell(vm, "set -a; . /run/snow/params; env | grep -E '^(SNOW|PARAM)_'")
    return dict(line.split("=", 1) for line in text.splitlines())

def distinct(values, what):
    expect(all(values), f"{what}: one is empty: {values}")
    expect_equal(len(set(values)), len(values), f"{what} of parent and clones, distinct: {values}")

def random_numbers(daemon):
    """Programs that draw all the time: what is drawn after the fork is new in each machine."""
    daemon.shell("a", f"{CALLER} draw:/tmp/drawn >/dev/null 2>&1 &")
    daemon.shell("a", "(while :; do head -c 8 /dev/urandom | hexdump -ve '/1 \"%02x\"'; echo; "
                 "done) >/tmp/urandom 2>/dev/null &")
    wait_for(lambda: int(daemon.shell("a", "cat /tmp/drawn /tmp/urandom 2>/dev/null | wc -l")) > 50,
             "random numbers are drawn")
    got = daemon.exec("a", CALLER, "ticket:3", "clone", "say:{random}", "join", "else",
                      "exit:0:{random}").splitlines()
    first = [got[2]] + [line.split()[-1] for line in got[3:]]
    expect_equal(len(first), 4, f"first random numbers: {got}")
    distinct(first, "first random number after the fork")

    clones = daemon.fork("a", 2)
    machines = ["a", *clones]
    for path in ("/tmp/drawn", "/tmp/urandom"):
        wait_for(lambda: all(int(daemon.shell(vm, f"wc -l <{path}")) > 100 for vm in machines),
                 f"{path} grows in all")
        drawn = {vm: daemon.exec(vm, "cat", path).splitlines()[:-1] for vm in machines}
        common = 0
        for row in zip(*drawn.values()):
            if len(set(row)) > 1:
                break
            common += 1
        expect(common > 10, f"{path}: drawn before the fork and so everybody's: {common} lines")
        tails = [number for numbers in drawn.values() for number in numbers[common:]]
        expect(len(tails) > 6, f"{path}: numbers drawn after the fork: {len(tails)}")
        expect_equal(len(tails) - len(set(tails)), 0, f"{path}: numbers drawn twice after the fork")
    return clones

def names_and_ids(daemon, clones):
    machines = ["a", *clones]
    facts = {vm: params(daemon, vm) for vm in machines}
    for key in ("SNOW_ID", "SNOW_NAME", "SNOW_INDEX", "SNOW_UUID"):
        distinct([facts[vm].get(key) for vm in machines], key)
    for index, vm in enumerate(clones, start=1):
        seen = daemon.inspect(vm)
        wanted = {"SNOW_ID": seen["id"], "SNOW_NAME": vm, "SNOW_INDEX": str(index),
                  "SNOW_TICKET": seen["ticket"], "SNOW_PARENT": daemon.inspect("a")["id"],
                  "SNOW_UUID": seen["uuid"]}
        expect_equal({key: facts[vm].get(key) for key in KEYS}, wanted, f"params of {vm}")
    expect_equal(facts["a"]["SNOW_INDEX"], "0", "index of the parent")
    hostnames = [daemon.exec(vm, "hostname") for vm in machines]
    distinct(hostnames, "hostnames")
    expect_equal(hostnames[0], daemon.shell("a", "cat /tmp/hostname-before"),
                 "the parent's hostname stays")
    for file in ("/etc/machine-id", "/sys/class/net/eth0/address"):
        distinct([daemon.exec(vm, "cat", file) for vm in machines], file)
    for vm in machines:
        expect_equal(daemon.exec(vm, "cat", "/sys/class/net/eth0/address"),
                     daemon.inspect(vm)["mac"], f"MAC address of {vm} as inspect has it")
    expect_equal(daemon.exec("a", "cat", "/etc/machine-id"),
                 daemon.shell("a", "cat /tmp/id-before"),
                 "the parent's machine-id stays")

def parameters_and_hooks(daemon):
    daemon.shell("a", "mkdir -p /etc/snow/fork.d; cd /etc/snow/fork.d; "
                 "printf '#!/bin/sh\\necho $SNOW_INDEX $PARAM_job $COLOUR >/tmp/hook\\n' >10-note; "
                 "printf '#!/bin/sh\\n[ $SNOW_INDEX = 0 ] || exit 3\\n' >20-fails; chmod +x *")
    result = daemon.snow_json("fork", "a", "-n", "2", "--param", "job=two words",
                              "--param", "empty=")
    clones = [vm["name"] for vm in result["clones"]]
    for index, vm in enumerate(clones, start=1):
        expect_equal(params(daemon, vm)["PARAM_job"], "two words", f"parameter in {vm}")
        expect_equal(daemon.exec(vm, "cat", "/tmp/hook"), f"{index} two words blue",
                     f"hook in {vm}")
        expect_equal(daemon.shell(vm, "echo $COLOUR"), "blue", f"--env in {vm}")
        undone = daemon.inspect(vm)["undone"]
        expect(any("20-fails" in text and "exit 3" in text for text in undone),
               f"undone of {vm}: {undone}")
        expect(any(vm in text and "20-fails" in text for text in result["undone"]),
               f"undone of the fork: {result['undone']}")
    expect(daemon.exec("a", "cat", "/tmp/hook").startswith("0"), "the hook in the parent")
    expect_equal(daemon.inspect("a")["undone"], [], "undone of the parent")
    shown = daemon.snow_result("fork", "a", "-n", "1")
    expect("20-fails" in shown.stderr and "20-fails" not in shown.stdout,
           f"snow fork says so: {shown}")
    daemon.shell("a", "rm /etc/snow/fork.d/*")
    for vm in [*clones, shown.stdout.split()[-1]]:
        daemon.snow("rm", "--force", vm, check=False)

def clock(daemon):
    """Stepped after a fork, and after a snapshot that was started later."""
    def offset(vm):
        before = time.time()
        guest = float(daemon.exec(vm, "date", "+%s"))
        return 0 if before - 2 <= guest <= time.time() + 2 else guest - before
    daemon.snow("snapshot", "a", "kept")
    daemon.shell("a", "date -s @1000000000 >/dev/null")
    (clone,) = daemon.fork("a", 1)
    for vm in ("a", clone):
        expect_equal(offset(vm), 0, f"seconds that the clock of {vm} is off after a fork")
    time.sleep(4)
    daemon.snow("run", "--from", "kept", "--name", "later")
    expect_equal(offset("later"), 0, "seconds that the clock is off in a snapshot started later")
    daemon.snow("pause", "a")
    time.sleep(4)
    daemon.snow("resume", "a")
    expect_equal(offset("a"), 0, "seconds that the clock is off after pause and resume")

def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="a", net="user", env=["COLOUR=blue"])
        daemon.shell("a", "echo 0123456789abcdef0123456789abcdef >/tmp/id-before; "
                     "cp /tmp/id-before /etc/machine-id; hostname >/tmp/hostname-before")
        clones = random_numbers(daemon)
        names_and_ids(daemon, clones)
        for vm in clones:
            daemon.snow("rm", "--force", vm)
        parameters_and_hooks(daemon)
        clock(daemon)

if __name__ == "__main__":
    main()
