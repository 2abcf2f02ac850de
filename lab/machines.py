"""The lab: N hosts on one machine, an etcd beside them, and a network between them.

    with Lab(hosts=2, rate="1gbit") as lab:
        lab.hosts[0].run(["ip", "address"])
        lab.loss(lab.hosts[1], 5)

A host is a set of namespaces (lab/supervisor.py) with an interface of its own (lab/network.py), a /run
of its own and a state folder that outlives its power (`cut`, `boot`). Nothing of it is outside of
its namespaces but processes and the folder FOLDER = /tmp/snow-lab-NAME. What runs there is a matter of
the caller: tests/lib/snowlab.py puts a snowd on each. Not thread-safe, but for run() and popen().
Needs root.
"""
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from lab import supervisor
from lab.network import FABRIC, NETWORK, Network

COMMAND_S = 240
ETCD = "/usr/bin/etcd"
ETCD_PORT = 2379
ETCD_NUMBER = 250
HOST_LIMIT = 200


# What a command enters. WHOLE: it is among the host's processes, and dies with the host. SHARED: it is the
# caller's child, killed by its number, but /proc/self is not there. NET: only the network is the host's.
WHOLE = ("net", "mount", "uts", "ipc", "pid")
SHARED = ("net", "mount", "uts", "ipc")
NET = ("net",)


class LabFailure(RuntimeError):
    """The lab cannot do what was asked; the message says why."""


def children_of(pid):
    """What a process has started, by number: nsenter's child for a command with own_pids."""
    try:
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]


def kill(process, number=signal.SIGKILL):
    """Sends the signal to the command of a popen(), not to the nsenter before it."""
    for pid in children_of(process.pid):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class Namespace:
    """One host's namespaces, by the number of its init."""

    def __init__(self, lab, name, address=None):
        self.lab, self.name, self.address = lab, name, address
        self.pid = None

    def entered(self, command, spaces=WHOLE):
        """The words that run the command there."""
        if self.pid is None:
            raise LabFailure(f"{self.name} is off")
        return ["nsenter", f"--target={self.pid}", *(f"--{space}" for space in spaces), "--",
                *map(str, command)]

    def environment(self):
        return {**os.environ, supervisor.MARK: self.lab.name}

    def popen(self, command, spaces=WHOLE, **options):
        """As subprocess.Popen. In WHOLE the process is nsenter, which waits for the command and ends as
        it does; kill() below ends the command."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(self.entered(command, spaces), env=self.environment(), **options)

    def run(self, command, check=True, timeout_s=COMMAND_S, text_in=None, spaces=WHOLE):
        """Runs the command to its end: a CompletedProcess with texts. With check, another exit code
        than 0 is a LabFailure that has what it printed on stderr."""
        process = self.popen(command, spaces, text=True, errors="replace", stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE,
                             stdin=subprocess.DEVNULL if text_in is None else subprocess.PIPE)
        try:
            out, err = process.communicate(text_in, timeout_s)
        except BaseException:
            kill(process)
            process.communicate()
            raise
        if check and process.returncode != 0:
            raise LabFailure(f"{self.name}: {' '.join(map(str, command))}: exit "
                             f"{process.returncode}: {err}".rstrip())
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def end(self, process):
        """Kills the command of a popen() in WHOLE and waits until it is over."""
        kill(process)
        process.wait(30)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def path(self, path):
        """A file of the host as this process can open it."""
        return pathlib.Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")


class Host(Namespace):
    """A host with a link. Address, state folder and run folder stay the same over cut() and boot()."""

    def __init__(self, lab, name, number, disk=None):
        super().__init__(lab, name, f"{NETWORK}.{number}")
        self.number, self.disk = number, disk
        self.state_dir = lab.folder / name
        self.run_dir = supervisor.run_dir_of(lab.folder, name)

    def boot(self):
        """Power on: empty /run, no process, an interface that nobody knows yet."""
        asked = {"op": "boot", "name": self.name, **({"disk": self.disk} if self.disk else {})}
        self.pid = self.lab.ask(asked)["pid"]
        self.path(self.run_dir).mkdir(parents=True)
        self.lab.network.connect(self, self.number, self.lab.rate)

    def cut(self):
        """Power off: all processes of the host are gone, and what was in their memory."""
        self.lab.ask({"op": "cut", "name": self.name})
        self.lab.network.disconnect(self.name)
        self.pid = None


class Etcd(Host):
    """A real etcd on a host of its own, without a limit of its link's rate."""

    def __init__(self, lab):
        super().__init__(lab, "etcd", ETCD_NUMBER)
        self.process = None
        self.url = f"http://{self.address}:{ETCD_PORT}"

    def boot(self):
        super().boot()
        self.lab.network.set_rate(self.name, None)

    def start(self):
        """Starts it and waits until it answers; with the data that it had."""
        if not os.access(ETCD, os.X_OK):
            raise LabFailure(f"{ETCD} is missing: apt-get install etcd-server")
        command = [ETCD, "--name=lab", f"--data-dir={self.state_dir}/data", "--log-level=warn",
                   f"--listen-client-urls={self.url},http://127.0.0.1:{ETCD_PORT}",
                   f"--advertise-client-urls={self.url}",
                   "--listen-peer-urls=http://127.0.0.1:2380",
                   "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                   "--initial-cluster=lab=http://127.0.0.1:2380"]
        with open(self.lab.folder / "etcd.log", "ab") as log:
            self.process = self.popen(command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = (self.lab.folder / "etcd.log").read_text(errors="replace")[-2000:]
                raise LabFailure(f"etcd did not start:\n{tail}")
            time.sleep(0.05)

    def healthy(self):
        return self.run([sys.executable, "-S", "-c", _HEALTH, self.url], check=False).returncode == 0

    def stop(self):
        """Kills it; its data stay."""
        if self.process is None:
            return
        self.end(self.process)
        self.process = None


_HEALTH = """
import json, sys, urllib.request
with urllib.request.urlopen(sys.argv[1] + "/health", timeout=2) as answer:
    sys.exit(json.load(answer)["health"] != "true")
"""


class Lab:
    """The hosts h0, h1, ...: `hosts`; the etcd, not yet started: `etcd` (None without)."""

    host_class = Host

    def __init__(self, hosts=2, rate=None, disk=None, etcd=True):
        """rate: of each host's link, both directions ("1gbit"; None: what the machine does).
        disk: the size of a host's state folder, in memory then ("512m"; None: on /tmp's disk)."""
        if not 0 < hosts <= HOST_LIMIT:
            raise LabFailure(f"{hosts} hosts: 1 to {HOST_LIMIT} fit into the lab's network")
        self.count, self.rate, self.disk, self.with_etcd = hosts, rate, disk, etcd
        self.hosts, self.etcd, self.network = [], None, None
        self.folder = self.process = self.control = self.lines = None

    @property
    def name(self):
        return self.folder.name

    def __enter__(self):
        supervisor.clean()
        self._start_supervisor()
        try:
            fabric = Namespace(self, FABRIC)
            fabric.pid = self.ask({"op": "boot", "name": FABRIC})["pid"]
            self.network = Network(fabric)
            for index in range(self.count):
                host = self.host_class(self, f"h{index}", index + 1, self.disk)
                host.boot()
                self.hosts.append(host)
            if self.with_etcd:
                self.etcd = Etcd(self)
                self.etcd.boot()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, kind, error, trace):
        self.end()
        return False

    def _start_supervisor(self):
        if os.geteuid() != 0:
            raise LabFailure("the lab makes namespaces and interfaces: run it as root")
        ours, its = socket.socketpair()
        with its:
            self.process = subprocess.Popen(
                [sys.executable, supervisor.__file__, "--control", str(its.fileno())],
                pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
        self.control = ours
        self.lines = ours.makefile("r", encoding="utf-8")
        self.folder = pathlib.Path(self._answer()["folder"])

    def _answer(self):
        line = self.lines.readline()
        if not line:
            raise LabFailure("the lab's supervisor is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise LabFailure(answer["error"])
        return answer

    def ask(self, what):
        """One request to the supervisor and its answer."""
        self.control.sendall(json.dumps(what).encode() + b"\n")
        return self._answer()

    def end(self):
        """Ends everything; nothing is left then. Can be called twice."""
        if self.process is None:
            return
        try:
            self.ask({"op": "end"})
        except (OSError, LabFailure):
            pass  # it is gone, and the hosts with it
        self.control.close()
        self.lines.close()
        self.process.wait(60)
        self.process = None
        if self.folder and self.folder.exists():
            supervisor.clean()

    # ---- the network

    def namespace(self, host):
        """A host by name or number: `lab.namespace(2).run(["ip", "route"])`."""
        if isinstance(host, Namespace):
            return host
        if isinstance(host, int):
            return self.hosts[host]
        for node in [*self.hosts, self.etcd, self.network.fabric]:
            if node is not None and node.name == host:
                return node
        raise LabFailure(f"no host {host}; there are {', '.join(node.name for node in self.hosts)}")

    def _name(self, host):
        return self.namespace(host).name

    def partition(self, host, others=None):
        """Cuts the host off: from all, or only from `others`. It does not notice by itself."""
        if others is None:
            self.network.change(self._name(host), cut=True)
        else:
            self.network.change(self._name(host),
                                cut_from=tuple(self.namespace(other).address for other in others))

    def heal(self, host):
        self.network.change(self._name(host), cut=False, cut_from=())

    def loss(self, host, percent, direction="both"):
        """So many of the packets `from` the host, `to` it, or of each direction get lost; 0: none."""
        what = {"from": {"loss_from": percent}, "to": {"loss_to": percent},
                "both": {"loss_from": percent, "loss_to": percent}}[direction]
        self.network.change(self._name(host), **what)

    def duplicate(self, host, percent):
        """So many of the packets to the host arrive twice."""
        self.network.change(self._name(host), duplicate=percent)

    def reorder(self, host, percent):
        """So many of the packets to the host arrive after some that were sent later."""
        self.network.change(self._name(host), reorder=percent)

    def multicast(self, passes):
        """Whether the network passes multicast (it does until told otherwise)."""
        self.network.pass_multicast(passes)

    def set_rate(self, host, rate):
        self.network.set_rate(self._name(host), rate)

    def traffic(self):
        """{host's name: {"sent": bytes, "received": bytes}} on the wire since its boot."""
        return self.network.traffic()
