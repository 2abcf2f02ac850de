#!/usr/bin/env python3
"""A fork with a process killed at every step: of the parent's old QEMU, its next one, a clone's, and
of the daemon. (`--set fault=STEP:WHO` does it, see vm/fault.h.)

After each the parent lives, went on or restored from the frozen image (which is said), with every page
of its memory; the fork has either worked or left nothing; and the next fork, which is the next case,
works. Only a QEMU that is killed before its state was saved takes its VM with it.
"""
# timeout: 600 s
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

PATTERN = "/opt/test/pattern"
EARLY = ["reserved", "prepared", "recorded", "stopped"]
PAUSE = ["frozen", "loaded", "passed"]
LATE = ["continued", "moved"]
# What becomes of the fork: "works", "undone" (an error; the parent goes on), "restored" (works, and
# says that the parent was restored).
QEMU_CASES = (
    [(f"{step}:shell", "undone") for step in EARLY + PAUSE] +
    [(f"{step}:shell", "restored") for step in LATE + ["announced"]] +
    [(f"{step}:old", "works") for step in PAUSE + LATE + ["copied", "settled"]] +
    [("frozen:old+shell", "restored"), ("passed:old+shell", "restored")] +
    [(f"{step}:clone", "works") for step in ["reserved", "frozen", "clone_loaded",
                                             "clone_continued"]])
# "parent's fork finished" from the moment when that is on record.
DAEMON_CASES = (
    [(f"{step}:daemon", "undone") for step in EARLY + ["frozen", "loaded"]] +
    [(f"{step}:daemon", "finished") for step in ["passed", "continued", "moved", "clone_loaded",
                                                 "clone_continued", "announced", "copied",
                                                 "settled"]] +
    [("passed:shell+daemon", "restored"), ("continued:old+daemon", "finished")])


def verify(daemon, vm, case):
    answer = daemon.exec(vm, PATTERN, "verify")
    expect(answer.startswith("OK "), f"{case}: {vm}: {answer}")


def remove_others(daemon, keep):
    for vm in daemon.vms("--all"):
        if vm["name"] not in keep:
            daemon.snow("rm", "--force", vm["id"])


def log_of(daemon, mark):
    return daemon.log_path.read_bytes()[mark:].decode(errors="replace")


def qemu_cases(daemon, spare):
    for case, outcome in QEMU_CASES:
        mark = daemon.log_path.stat().st_size
        result = daemon.snow_result("-o", "json", "fork", "p", "-n", 1)
        wait_for(lambda: f"fault {case}" in log_of(daemon, mark), f"{case}: the fault happens")
        if outcome == "undone":
            expect(result.returncode == 13, f"{case}: exit {result.returncode}")
            expect_equal([vm["name"] for vm in daemon.vms("--all")], ["p", *spare],
                         f"{case}: VMs after a fork that failed")
        else:
            expect_equal(result.returncode, 0, f"{case}: exit code; {result.stderr}")
            fork = json.loads(result.stdout)
            verify(daemon, fork["clones"][0]["name"], case)
            said = any("restored" in line for line in fork["undone"])
            expect_equal(said, outcome == "restored", f"{case}: says restored: {fork['undone']}")
        verify(daemon, "p", case)
        remove_others(daemon, ["p", *spare])
        print(f"{case}: {outcome}", flush=True)
    # Before the state is saved the guest is in its QEMU only.
    for step, vm in zip(EARLY, spare):
        error = daemon.snow_fails("fork", vm, "-n", 1)
        wait_for(lambda: [one for one in daemon.vms("--all")
                          if one["name"] == vm and one["state"] == "crashed"],
                 f"{step}:old: {vm} is crashed ({error})")
        expect_equal(len(daemon.vms("--all")), 1 + len(spare), f"{step}:old: VMs")
        print(f"{step}:old: crashed", flush=True)


def daemon_cases(daemon):
    for case, outcome in DAEMON_CASES:
        daemon.settings["fault"] = case
        daemon.restart()
        mark = daemon.log_path.stat().st_size
        result = daemon.snow_result("fork", "p", "-n", 1)
        wait_for(lambda: daemon.process.poll() is not None, f"{case}: the daemon is killed")
        expect(f"fault {case}" in log_of(daemon, mark), f"{case}: the fault did not happen")
        del daemon.settings["fault"]
        daemon.start()
        log = log_of(daemon, mark)
        # In the background, when the fork may be over already.
        over = case.split(":")[0] in ("copied", "settled")
        expect(result.returncode == 12 or (over and result.returncode == 0),
               f"{case}: exit {result.returncode}: {result.stderr}")
        wait_for(lambda: daemon.inspect("p")["state"] == "running", f"{case}: the parent runs")
        verify(daemon, "p", case)
        if outcome == "undone":
            expect_equal([vm["name"] for vm in daemon.vms("--all")], ["p"], f"{case}: VMs")
        if outcome == "restored":
            expect("restored from the frozen machine" in log, f"{case}: restored is not said")
        for vm in daemon.vms():
            if vm["name"] != "p":
                wait_for(lambda: daemon.snow_result("exec", vm["id"], "true").returncode == 0,
                         f"{case}: the clone's agent")
                verify(daemon, vm["id"], case)
        remove_others(daemon, ["p"])
        print(f"{case}: {outcome}", flush=True)
    verify(daemon, daemon.fork("p", 1)[0], "a fork after all")


def main():
    faults = []
    for fault in [case for case, _ in QEMU_CASES] + [f"{step}:old" for step in EARLY]:
        # One for each fork: the next counts from the beginning of the next one.
        faults += [fault] if fault.startswith("reserved:") else ["reserved:nobody", fault]
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="p")
        daemon.exec("p", PATTERN, "serve", 16, "churn")
        spare = daemon.fork("p", len(EARLY))
        daemon.settings["fault"] = ",".join(faults)
        daemon.restart()
        qemu_cases(daemon, spare)
        remove_others(daemon, ["p"])
        daemon_cases(daemon)


if __name__ == "__main__":
    main()
