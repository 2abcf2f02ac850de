"""What a test must not leave behind on the host: mounts, namespaces, taps, tables of nftables, control
groups, and entries of /run, /tmp, /var/lib and /dev/shm named snow*. Processes are supervise.py's part.

What is inside of a namespace (the lab's interfaces, mounts, tables) is there as long as the namespace."""
import glob
import os
import subprocess
import time


def _lines(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()


NAMESPACES = ("net", "mnt", "pid")


def namespaces_of(pid):
    """The network, mount and process namespaces of a process; none if it is over, a zombie too."""
    try:
        return {f"namespace {os.readlink(f'/proc/{pid}/ns/{kind}')}" for kind in NAMESPACES}
    except OSError:
        return set()


def snapshot():
    """The set of things there are now, each as a readable line."""
    things = set()
    for line in _lines("/proc/self/mounts"):
        device, point, kind = line.split()[:3]
        things.add(f"mount {point} ({kind} {device})")
    for path in glob.glob("/run/netns/*"):
        things.add(f"network namespace {path}")
    for line in _lines("/proc/net/dev")[2:]:
        things.add(f"network interface {line.split(':')[0].strip()}")
    try:
        rules = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
        things.update(f"nftables {line}" for line in rules.stdout.splitlines()
                      if "thundersnow" in line)
    except OSError:
        pass  # not installed: there are none
    for pid in filter(str.isdigit, os.listdir("/proc")):
        things.update(namespaces_of(pid))
    for folder in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        things.update(f"control group {path}" for path in glob.glob(f"{folder}/thundersnow-*"))
    for folder in ("/run", "/tmp", "/var/lib", "/dev/shm"):
        for path in glob.glob(f"{folder}/snow*") + glob.glob(f"{folder}/.snow*"):
            things.add(f"file {path}")
    return things


def left_since(before, grace_s=10.0):
    """What is there now and was not before; waits up to grace_s for it to go."""
    deadline = time.monotonic() + grace_s
    while True:
        left = sorted(snapshot() - before)
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.2)
