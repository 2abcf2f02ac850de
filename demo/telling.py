"""How the demos tell what happens: a timeline, and the lines of the program in the guest."""
import json
import subprocess
import threading
import time

from snowtest import Failure, expect

START = time.monotonic()


def say(text):
    """A line of the timeline."""
    print(f"{time.monotonic() - START:6.1f} s  {text}", flush=True)


def also(text=""):
    print(f"          {text}".rstrip(), flush=True)


def mb(size):
    return f"{size / 1e6:,.0f} MB"


def seconds(value):
    return f"{value:.1f} s"


class Program:
    """index.py in the guest: what it tells, as it comes."""

    def __init__(self, daemon, vm, *words):
        """words: how it is started in the guest."""
        self.command = subprocess.Popen(
            [*daemon.snow_command("exec", vm, "--", *words)], text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.errors = ""
        self.reader = threading.Thread(target=self._read_errors, daemon=True)
        self.reader.start()

    def _read_errors(self):
        self.errors = self.command.stderr.read()

    def next(self, event):
        line = self.command.stdout.readline()
        if not line:
            self.command.wait()
            self.reader.join(10)
            raise Failure(f"index.py ended with {self.command.returncode} before it said "
                          f"'{event}':\n{self.errors}")
        told = json.loads(line)
        expect(told["event"] == event, f"index.py said {told}, not '{event}'")
        return told

    def end(self):
        self.command.kill()
        self.command.wait()


def watch_family(daemon, program, wanted, what):
    """Waits until so many VMs are there and clones among them run; the tree as text, and the VMs. (A
    clone that has its answers ends while the next one still hears who it is.)"""
    while program.command.poll() is None:
        vms = [vm for vm in daemon.vms() if vm["state"] in ("starting", "running")]
        if len(vms) >= wanted and any(vm["parent"] and vm["state"] == "running" for vm in vms):
            return daemon.snow("tree"), vms
        time.sleep(0.05)
    raise Failure(f"index.py ended before {what} ran:\n{program.errors}")


def show_tree(tree):
    print(flush=True)
    for line in tree.splitlines():
        if "exited" not in line:
            also("  " + line)
    print(flush=True)
