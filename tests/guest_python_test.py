#!/usr/bin/env python3
"""The Python module on the debian guest, whose systemd leaves the agent a slice of its own."""
# timeout: 600 s
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal  # noqa: E402

MAP = """
import snow
base = [7] * 1000
print(snow.map(lambda x: (x, x * base[x]), range(10), n=3))
print(snow.map(lambda x: x, [], n=3), snow.map(str, [5], n=4))
"""

ERRORS = """
import snow
def divide(x):
    return 12 // x
try:
    snow.map(divide, [3, 0, 4], n=3)
except snow.CloneError as error:
    print(error.index, type(error.exception).__name__, type(error.__cause__).__name__)
    print("in divide" in error.traceback, "Traceback" in str(error))
try:
    with snow.ticket(2) as t:
        index = t.clone()
        if index == 2:
            raise KeyError("mine")
        if index:
            snow.exit({"from": index}, status=5)
        first, second = t.join()
        print(first.value, first.status, second.how)
        second.value
except snow.CloneError as error:
    print("raised", error.index, repr(error.exception))
with snow.ticket(2) as t:
    if t.clone():
        import time
        time.sleep(1000)
    print([r.how for r in t.join(timeout=0.2)])
try:
    t.join()
except snow.SnowError as error:
    print(error.code)
try:
    snow.ticket(0)
except snow.SnowError as error:
    print(error.code)
print(snow.info().index, snow.info().generation)
"""

CHECKPOINT = """
import snow
state = ["old"]
point = snow.checkpoint()
if point.index:
    snow.exit((point.index, state[0]))
state[0] = "new"
for n in (2, 1):
    with snow.ticket(n) as t:
        print(t.create(point), [r.value for r in t.join()], state[0])
"""

SLICE = """
systemctl show -p ControlGroup --value snow-agent
systemctl is-active snow-agent
cat /sys/fs/cgroup/snow.slice/cgroup.freeze
"""


HOOK = """
mkdir -p /etc/snow/fork.d
cat >/etc/snow/fork.d/10-frozen <<'END'
#!/bin/sh
cd /sys/fs/cgroup && grep -l 'frozen 1' */cgroup.events | sed 's,/.*,,' >/run/frozen
END
chmod +x /etc/snow/fork.d/10-frozen
"""


def python(daemon, text):
    return daemon.exec("d", "python3", "-c", text).splitlines()


def main():
    with Daemon(images=["debian"]) as daemon:
        daemon.run_vm("debian", name="d")
        group, active, frozen = daemon.shell("d", SLICE).splitlines()
        expect(group.startswith("/snow.slice/"), f"the agent's cgroup: {group}")
        expect_equal((active, frozen), ("active", "0"), "the agent's unit and slice")

        expect_equal(python(daemon, MAP), [str([(x, 7 * x) for x in range(10)]), "[] ['5']"],
                     "snow.map")
        expect_equal(python(daemon, ERRORS), [
            "2 ZeroDivisionError ZeroDivisionError", "True True",
            "{'from': 1} 5 exited", "raised 2 KeyError('mine')",
            "['running', 'running']", "spent", "invalid", "0 0"], "errors of clones")
        expect_equal(python(daemon, CHECKPOINT), [
            "2 [(1, 'old'), (2, 'old')] new", "1 [(1, 'old')] new"], "checkpoint")
        # In a clone a hook runs between the thaw and the user's processes: those stand still. The
        # parent's go on first, so that its pause is short; its hook runs before it is announced.
        daemon.shell("d", HOOK)
        result = daemon.snow_json("fork", "d", "-n", "1")
        expect_equal(result["undone"], [], "what was not done in the fork")
        clone = result["clones"][0]["name"]
        frozen = daemon.exec(clone, "cat", "/run/frozen").split()
        expect({"system.slice", "snow-exec"} <= set(frozen) and "snow.slice" not in frozen,
               f"slices of {clone} that stand still while it is told who it is: {frozen}")
        expect_equal(daemon.exec("d", "cat", "/run/frozen"), "", "what stands still in the parent")
        expect_equal(daemon.exec(clone, "hostnamectl", "hostname"), clone.replace(".", "-"),
                     "hostname as systemd has it")
        daemon.snow("rm", "--force", clone)
        expect_equal([vm["name"] for vm in daemon.vms()], ["d"], "VMs that are left")


if __name__ == "__main__":
    main()
