#!/usr/bin/env python3
"""Runs a command so that nothing of it outlives it, and it does not outlive its time.

    supervise.py [--timeout SECONDS] [--leaks] -- COMMAND [ARGUMENT...]

Every descendant of the command, daemons too, becomes a child of this process when its own parent
ends (PR_SET_CHILD_SUBREAPER). When the command is over they have ten seconds to end by themselves;
who is still there is named, killed, and makes the run a failure. --leaks does the same for what
leaks.py knows (only where nothing else uses the host meanwhile); it names, but does not remove.

Exit: the command's code (128 + n for signal n), 124 after the timeout, 99 if something was left.
"""
import argparse
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import leaks  # noqa: E402

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 10.0
EXIT_TIMEOUT = 124
EXIT_LEFT = 99


def descendants():
    """{pid: name} of all living descendants of this process; zombies do not count."""
    parents, names = {}, {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                head, _, tail = file.read().rpartition(")")
            with open(f"/proc/{entry}/cmdline", encoding="utf-8", errors="replace") as file:
                command = file.read().replace("\0", " ").strip()
        except OSError:
            continue
        fields = tail.split()
        parents[int(entry)] = int(fields[1])
        if fields[0] not in "ZX":
            names[int(entry)] = command[:200] or head.partition("(")[2]
    found, wave = {}, {os.getpid()}
    while wave:
        wave = {pid for pid, parent in parents.items() if parent in wave}
        found.update({pid: names[pid] for pid in wave if pid in names})
    return found


def reap():
    """Collects children that ended; the command itself has been waited for before."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def kill_all():
    """Kills all descendants, also those that appear while it does."""
    deadline = time.monotonic() + GRACE_S
    while True:
        running = descendants()
        if not running or time.monotonic() > deadline:
            return
        for pid in running:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        reap()
        time.sleep(0.05)


def say(text):
    print(f"supervise: {text}", flush=True)


def run(command, timeout_s):
    """The command's exit code, or EXIT_TIMEOUT."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        say(f"not over after {timeout_s:g} s, killed. Running then:")
        for pid, name in descendants().items():
            say(f"  {pid} {name}")
        return EXIT_TIMEOUT
    return code if code >= 0 else 128 - code


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--timeout", type=float, default=None)
    parser.add_argument("--leaks", action="store_true")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    def on_signal(number, _frame):
        kill_all()
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)

    before = leaks.snapshot() if options.leaks else set()
    code = run(options.command, options.timeout)
    if code == EXIT_TIMEOUT:
        kill_all()
    deadline = time.monotonic() + GRACE_S
    while True:
        reap()
        left = descendants()
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    for pid, name in left.items():
        say(f"left behind: process {pid} {name}")
    kill_all()
    things = leaks.left_since(before, GRACE_S) if options.leaks else []
    for thing in things:
        say(f"left behind: {thing}")
    if code == 0 and (left or things):
        code = EXIT_LEFT
    sys.exit(code)


if __name__ == "__main__":
    main()
