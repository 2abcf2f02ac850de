"""What a test must not leave behind on the host: mounts, network namespaces, taps, tables of nftables,
and entries of /run, /tmp, /var/lib and /dev/shm named snow*. Processes are supervise.py's part."""
import glob
import subprocess
import time


def _lines(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().splitlines()


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
