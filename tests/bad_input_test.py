#!/usr/bin/env python3
"""Bad input and bad luck: each a clear error with its own exit code, and nothing is changed.

The code of each is in docs/errors.md. What "nothing" means: `snow ps -a`, the images, snapshots and
tickets, and the files in the run and state folders are what they were.
"""
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import KEEPER, SNOWD, Daemon, expect, expect_equal, wait_for  # noqa: E402

USAGE, NOT_FOUND, EXISTS, INVALID, NO_ROOM, WRONG_STATE = 2, 3, 4, 5, 6, 7
HOST_FAILED, CORRUPT = 13, 14


def all_there_is(daemon):
    lists = [daemon.snow_json(*command) for command in
             (("ps", "--all"), ("image", "ls"), ("snapshot", "ls"), ("ticket", "ls"))]
    files = sorted(str(path) for folder in (daemon.run_dir / "ram", daemon.run_dir / "p",
                                            daemon.run_dir / "vms", daemon.state_dir)
                   for path in folder.rglob("*") if path.suffix != ".db-journal")
    return lists + [files]


class Refused:
    """Runs commands that must fail and change nothing; finish() tells what did not hold."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.before = all_there_is(daemon)
        self.wrong = []

    def __call__(self, code, says, *command):
        what = f"snow {' '.join(map(str, command))}"
        result = self.daemon.snow_result(*command)
        if result.returncode != code or says not in result.stderr:
            self.wrong.append(f"{what}: exit {result.returncode}, not {code} with '{says}': "
                              f"{result.stderr.strip()}")
        after = all_there_is(self.daemon)
        for was, now in zip(self.before, after):
            if was != now:
                self.wrong.append(f"{what}: changed {was} to {now}")
        self.before = after

    def finish(self):
        expect(not self.wrong, "\n".join(self.wrong))


def names_and_numbers(refused):
    for command in (["fork"], ["inspect"], ["pause"], ["resume"], ["kill"], ["stop"], ["rm"],
                    ["logs"], ["reserve"]):
        refused(NOT_FOUND, "'nobody'", *command, "nobody")
    refused(INVALID, "0", "fork", "a", "-n", 0)
    refused(INVALID, "0", "reserve", "a", "-n", 0)
    refused(INVALID, "8", "fork", "a", "-n", 9)  # fork_limit is 8
    refused(NO_ROOM, "memory", "run", "--detach", "--memory", "64G", "tiny")
    refused(NO_ROOM, "VMs", "fork", "a", "-n", 8)  # vm_limit is 6
    refused(EXISTS, "taken", "run", "--detach", "--name", "a", "tiny")
    refused(INVALID, "-x/y", "run", "--detach", "--name=-x/y", "tiny")
    refused(NOT_FOUND, "nothing", "run", "--detach", "nothing")
    refused(NOT_FOUND, "t0", "fork", "a", "--ticket", "t0")
    refused(NOT_FOUND, "t0", "join", "t0")
    refused(WRONG_STATE, "stop", "rm", "a")


def images(refused, daemon):
    with tempfile.TemporaryDirectory(prefix="snow-bad-") as name:
        folder = pathlib.Path(name)
        good = next(daemon.state_dir.glob("images/tiny/disk*"))
        truncated, empty = folder / "truncated.qcow2", folder / "empty"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", good, truncated], check=True)
        os.truncate(truncated, truncated.stat().st_size // 2)
        empty.touch()
        refused(NOT_FOUND, "missing", "image", "import", folder / "missing", "--name", "x")
        refused(INVALID, "regular file", "image", "import", folder, "--name", "x")
        refused(CORRUPT, "truncated", "image", "import", truncated, "--name", "x")
        refused(INVALID, "empty", "image", "import", empty, "--name", "x")
        refused(EXISTS, "tiny", "image", "import", good, "--name", "tiny")
        refused(INVALID, "a/b", "image", "import", good, "--name", "a/b")
        refused(WRONG_STATE, "tiny", "image", "rm", "tiny")
        refused(NOT_FOUND, "nothing", "image", "rm", "nothing")


def snapshots(refused, daemon):
    refused(INVALID, "../x", "snapshot", "a", "../x")
    refused(EXISTS, "kept", "snapshot", "a", "kept")
    refused(NOT_FOUND, "nothing", "run", "--detach", "--from", "nothing")
    refused(NOT_FOUND, "nothing", "snapshot", "rm", "nothing")
    refused(USAGE, "memory", "run", "--detach", "--from", "kept", "--memory", "1G")
    kept = daemon.state_dir / "snapshots/kept"
    for file, damage in (("memory", lambda path: os.truncate(path, 4096)),
                         ("state", lambda path: os.truncate(path, 100)),
                         ("snapshot.json", lambda path: path.write_text("{"))):
        whole = kept / f"{file}.whole"
        shutil.copy(kept / file, whole)
        damage(kept / file)
        refused.before = all_there_is(daemon)
        code = HOST_FAILED if file == "state" else CORRUPT
        refused(code, "kept", "run", "--detach", "--from", "kept")
        whole.rename(kept / file)
    refused.before = all_there_is(daemon)


def second_daemon(daemon):
    for state, run in ((daemon.state_dir, None), (None, daemon.run_dir)):
        with tempfile.TemporaryDirectory(prefix="snow-bad-") as other:
            result = subprocess.run(
                [SNOWD, "--state-dir", state or f"{other}/state", "--run-dir", run or f"{other}/run",
                 "--set", f"keeper={KEEPER}"],
                capture_output=True, text=True, timeout=60, check=False)
            what = f"a second daemon on the same {'state' if state else 'run'} folder"
            expect_equal(result.returncode, EXISTS, f"{what}: {result.stderr}")
            expect(str(state or run) in result.stderr, f"{what}: {result.stderr} does not name it")
            with open("/proc/self/mounts", encoding="utf-8") as mounts:
                expect(other not in mounts.read(), f"{what} left a mount")


def stale_socket_and_mount(daemon):
    daemon.snow("rm", "--force", "a", "b")
    daemon.stop()
    pathlib.Path(daemon.socket).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(daemon.socket)  # nobody listens any more
    daemon.start()
    daemon.stop()

    mount = daemon.run_dir / "lazy/mnt"
    mount.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "foreign", mount], check=True)
    try:
        result = subprocess.run([SNOWD, "--state-dir", daemon.state_dir, "--run-dir",
                                 daemon.run_dir, "--set", f"keeper={KEEPER}"],
                                capture_output=True, text=True, timeout=60, check=False)
        expect_equal(result.returncode, EXISTS, f"a foreign mount: {result.stderr}")
        expect(str(mount) in result.stderr, f"a foreign mount is not named: {result.stderr}")
    finally:
        subprocess.run(["umount", mount], check=True)
    daemon.start()


def main():
    settings = {"fork_limit": 8, "vm_limit": 6, "memory_limit": "8G"}
    with Daemon(images=["tiny"], settings=settings) as daemon:
        daemon.run_vm("tiny", name="a")
        daemon.run_vm("tiny", name="b", agent=False)
        daemon.snow("snapshot", "a", "kept")
        wait_for(lambda: daemon.inspect("a")["frozen"]["settled"], "a is settled")
        daemon.wait_agent("b")
        refused = Refused(daemon)
        names_and_numbers(refused)
        images(refused, daemon)
        snapshots(refused, daemon)
        second_daemon(daemon)

        # A guest whose kernel panicked has ended.
        daemon.shell("b", "echo 0 >/proc/sys/kernel/panic; "
                          "(sleep 0.3; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
        wait_for(lambda: daemon.inspect("b")["state"] == "crashed", "b's panic is seen")
        refused.before = all_there_is(daemon)
        refused(WRONG_STATE, "ended", "fork", "b")
        refused(WRONG_STATE, "ended", "pause", "b")
        daemon.snow("pause", "a")
        refused.before = all_there_is(daemon)
        refused(WRONG_STATE, "paused", "fork", "a")
        refused.finish()
        stale_socket_and_mount(daemon)


if __name__ == "__main__":
    main()
