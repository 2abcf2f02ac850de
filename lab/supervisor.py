"""Holds the lab's namespaces and ends them, whatever happens to who uses the lab.

A process of its own: `supervisor.py --control FD`. On the control socket it takes lines
of JSON and answers each with one:

    {"op": "boot", "name": "h1", "disk": "64m"}   -> {"pid": 123}   a new host's init (disk: optional)
    {"op": "cut", "name": "h1"}                   -> {}             power off: all its processes are dead
    {"op": "end"}                                 -> {}             the same for all, and it is over

A host is a process id, network, mount, IPC and host name namespace; its init is a fork of this process
that does nothing but reap. Namespaces have no names: they exist as long as that process does, and with
them everything in them, interfaces, mounts, tables of nftables, processes. When the control socket
closes (the user of the lab was killed), the supervisor ends all. When the supervisor itself is killed,
the kernel kills the inits (PR_SET_PDEATHSIG), and with each of them all processes of its host; only
the folder is left then, which `lab clean` and the next lab remove. A lock on it says that it is in use.

Its first line on the socket is {"folder": "/tmp/snow-lab-..."}.
"""
import argparse
import ctypes
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import sys
import tempfile
import time

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
PREFIX = "snow-lab-"
MARK = "SNOW_LAB"  # in the environment of everything that is run in a lab: the lab's name
PARENT = pathlib.Path("/tmp")
LOCKED = "locked"  # a file of the folder: its lock has been taken
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
LIBC = ctypes.CDLL(None, use_errno=True)


def _call(name, *arguments):
    if getattr(LIBC, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}{arguments}: {os.strerror(error)}")


def _mount(source, target, kind, flags, data=None):
    _call("mount", *(None if text is None else str(text).encode() for text in (source, target, kind)),
          flags, None if data is None else data.encode())


def _die_with_parent(parent):
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was quicker
        os._exit(1)


# ---- a host


def _be_init(name, ready):
    """Process 1 of a host: never returns."""
    LIBC.prctl(PR_SET_NAME, f"snow-lab-{name}"[:15].encode(), 0, 0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    socket.sethostname(name)
    for scope in ("all", "default"):  # no address detection, no chatter on a measured link
        path = pathlib.Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
        if path.exists():
            path.write_text("1", encoding="ascii")
    os.write(ready, b"ready\n")
    os.close(ready)
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def _hold(supervisor, name, ready):
    """The parent of an init, in the namespaces of this machine but its own mounts. Never returns."""
    try:
        _die_with_parent(supervisor)
        _call("unshare", CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC)
        me = os.getpid()
        init = os.fork()
        if init == 0:
            # From in there the parent's number is 0; the kernel kept the request for its death.
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if not pathlib.Path(f"/proc/{me}/stat").exists():
                os._exit(1)
            _be_init(name, ready)
        os.write(ready, f"{init}\n".encode())
        os.close(ready)
        os.waitpid(init, 0)
    except BaseException as error:  # pylint: disable=broad-except
        os.write(2, f"lab: host {name}: {error}\n".encode())
    finally:
        os._exit(1)


class Hosts:
    """The hosts that there are: for each its holder's and its init's number."""

    def __init__(self, folder, control):
        self.folder, self.control = folder, control
        self.running = {}

    def boot(self, name, disk=None):
        if name in self.running:
            raise ValueError(f"host {name} runs already")
        state = self.folder / name
        state.mkdir(exist_ok=True)
        state.chmod(0o755)
        if disk and not os.path.ismount(state):  # ours, so that it outlives the host's power
            _mount("tmpfs", state, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=0755,size={disk}")
        told, ready = os.pipe()
        me = os.getpid()
        holder = os.fork()
        if holder == 0:
            os.close(told)
            self.control.close()
            _hold(me, name, ready)
        os.close(ready)
        text = b""
        while chunk := os.read(told, 64):
            text += chunk
        os.close(told)
        words = set(text.decode().split())  # of the init and of its holder, in any order
        if "ready" not in words or len(words) != 2:
            os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)
            raise RuntimeError(f"host {name} did not start (root is needed)")
        init = int((words - {"ready"}).pop())
        self.running[name] = holder, init
        return init

    def cut(self, name):
        holder, init = self.running.pop(name)
        try:
            os.kill(init, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(holder, 0)  # it waits for the init, which waits for all of its processes

    def end(self):
        for name in list(self.running):
            self.cut(name)


# ---- what a lab leaves


def _environment_has(pid, mark):
    try:
        return mark in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def kill_marked(name):
    """Kills what was started in the lab's namespaces from outside, a shell for example."""
    mark = f"{MARK}={name}".encode()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()
                 and int(entry) != os.getpid() and _environment_has(entry, mark)]
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)


def cgroup_of(run_dir):
    """The name that keeper/cgroup.cc gives to the group of a run folder."""
    value = 0xcbf29ce484222325
    for byte in str(run_dir).encode():
        value = (value ^ byte) * 0x100000001b3 % (1 << 64)
    return f"thundersnow-{value:016x}"


def remove_cgroup(run_dir):
    """Removes the control groups that a keeper with this run folder left when it was killed."""
    for mount in CGROUPS:
        base = pathlib.Path(mount) / cgroup_of(run_dir)
        if base.is_dir():
            for folder in [*(path for path in base.iterdir() if path.is_dir()), base]:
                try:
                    folder.rmdir()
                except OSError:
                    pass  # somebody is in it: its end removes it, or the next call


def run_dir_of(folder, host):
    """A host's run folder, as the host sees it: /run is its own."""
    return pathlib.Path("/run") / folder.name / host


def remove_folder(folder):
    """What is left of a lab whose processes are gone."""
    kill_marked(folder.name)
    for entry in folder.iterdir():
        if entry.is_dir():
            remove_cgroup(run_dir_of(folder, entry.name))
    shutil.rmtree(folder, ignore_errors=True)


def lock(folder):
    """The lock that a living supervisor has on its lab's folder, or None if somebody has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except BlockingIOError:
        os.close(descriptor)
        return None


def make_folder():
    """A new lab's folder and the lock on it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT))
    folder.chmod(0o755)
    held = lock(folder)
    (folder / LOCKED).touch()
    return folder, held


def clean():
    """Removes what labs left whose supervisor was killed; their names."""
    removed = []
    for folder in sorted(PARENT.glob(f"{PREFIX}*")):
        # Without that file it is being made at this moment: nobody could have locked it yet.
        if not (folder / LOCKED).exists():
            continue
        try:
            held = lock(folder)
        except FileNotFoundError:
            continue
        if held is not None:
            remove_folder(folder)
            os.close(held)
            removed.append(folder.name)
    return removed


# ---- the process


def _serve(hosts, control):
    with control.makefile("r", encoding="utf-8") as lines:
        for line in lines:
            asked = json.loads(line)
            answer = {}
            try:
                if asked["op"] == "boot":
                    answer = {"pid": hosts.boot(asked["name"], asked.get("disk"))}
                elif asked["op"] == "cut":
                    hosts.cut(asked["name"])
                else:
                    return
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                answer = {"error": f"{asked['op']}: {error}"}
            control.sendall(json.dumps(answer).encode() + b"\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=int, required=True)
    options = parser.parse_args()
    LIBC.prctl(PR_SET_NAME, b"snow-lab", 0, 0, 0)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _call("unshare", CLONE_NEWNS)
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    control = socket.socket(fileno=options.control)
    folder, held = make_folder()
    hosts = Hosts(folder, control)
    try:
        control.sendall(json.dumps({"folder": str(folder)}).encode() + b"\n")
        _serve(hosts, control)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hosts.end()
        for mount in [line.split()[1] for line in open("/proc/self/mounts", encoding="utf-8")
                      if line.split()[1].startswith(f"{folder}/")]:
            LIBC.umount2(mount.encode(), 2)
        remove_folder(folder)
        os.close(held)
        try:
            control.sendall(b"{}\n")
        except OSError:
            pass  # nobody waits any more


if __name__ == "__main__":
    main()
