"""System tests of several hosts: the lab (lab/machines.py) with a snowd on each host.

    from snowlab import Lab
    with Lab(hosts=3, rate="1gbit") as lab:
        lab.hosts[0].daemon.run_vm("tiny", name="a")
        lab.hosts[1].snow("ps")
        lab.partition(lab.hosts[2])

Each host's daemon is a snowtest.Daemon: the same methods, but everything happens on that host. Leaving
the block removes the VMs, stops all daemons, and fails for what is left, as with Daemon; then the lab
ends, and takes with it whatever a failure has left.
"""
import concurrent.futures
import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from snowtest import BUILD, ROOT, START_S, Daemon, expect, raise_exit, wait_for  # noqa: E402

sys.path.insert(0, str(ROOT))
from lab import machines  # noqa: E402

UIDS_PER_HOST = 1000  # all hosts share this machine's users; a daemon has at most 512 VMs here


class HostDaemon(Daemon):
    """The snowd of one host. Its folders are the host's."""

    def __init__(self, host, images, settings, accelerator):
        uid_base = 700000 + host.number * UIDS_PER_HOST
        super().__init__(images, {"uid_base": uid_base, **settings}, accelerator)
        self.host = host
        self.state_dir, self.run_dir = host.state_dir, host.run_dir

    def __enter__(self):
        raise NotImplementedError("the lab starts and ends a host's daemon")

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def begin(self):
        """Starts it and imports the images."""
        self.start()
        for image in self.images:
            self.import_image(image)

    def end(self):
        """Removes its VMs and stops it; what is left then, as lines."""
        return [f"{self.host.name}: {line}" for line in self._end_in_order()] if self.process else []

    def show_log(self):
        self._show_log()

    def snow_command(self, *arguments):
        return self.host.entered(super().snow_command(*arguments), machines.SHARED)

    def seen(self, path):
        return self.host.path(path)

    def _own_vms(self):
        """In a cluster every daemon lists the VMs of all."""
        return [vm for vm in self.vms("--all") if vm.get("host") in (None, self.host.name)]

    def _popen(self, command, **options):
        return self.host.popen(command, **options)

    def _signal(self, number):
        machines.kill(self.process, number)

    def _mounts(self):
        with open(f"/proc/{self.host.pid}/mounts", encoding="utf-8") as file:
            return [line.split()[1] for line in file if f"{self.run_dir}/" in line]


class Host(machines.Host):
    """A host of the lab with its daemon."""

    daemon = None

    def snow(self, *arguments, **options):
        return self.daemon.snow(*arguments, **options)

    def snow_json(self, *arguments, **options):
        return self.daemon.snow_json(*arguments, **options)

    def snow_fails(self, *arguments, **options):
        return self.daemon.snow_fails(*arguments, **options)

    def cut(self):
        super().cut()
        if self.daemon is not None and self.daemon.process is not None:
            self.daemon.process.wait(START_S)


def on_all(hosts, action):
    """action(host) on all hosts at the same time; the results, or the first failure."""
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() * 2)) as pool:
        return list(pool.map(action, hosts))


class Lab(machines.Lab):
    """The lab, with etcd and daemons running when the block begins."""

    host_class = Host

    def __init__(self, hosts=2, rate=None, images=("tiny",), settings=None, accelerator="auto",
                 disk=None, etcd=True, daemons=True):
        """settings: of every snowd; daemons=False: none is started, daemon.begin() does it."""
        super().__init__(hosts, rate, disk, etcd)
        self.images, self.settings, self.accelerator = list(images), dict(settings or {}), accelerator
        self.start_daemons = daemons
        self.build_dir = BUILD

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, raise_exit)
        super().__enter__()
        try:
            for host in self.hosts:
                host.daemon = HostDaemon(host, self.images, self.settings, self.accelerator)
            if self.etcd is not None:
                self.etcd.start()
            if self.start_daemons:
                on_all(self.hosts, lambda host: host.daemon.begin())
        except BaseException:
            self._show_logs()
            self.end()
            raise
        return self

    def make_cluster(self, *options):
        """All hosts become one cluster: made on the first, joined by the others with tokens."""
        first = self.hosts[0]
        first.snow("cluster", "init", "--name", "lab", "--host-name", first.name, "--address",
                   first.address, "--etcd", self.etcd.url, *options)

        def join(host):
            token = first.snow("cluster", "token").strip()
            host.snow("cluster", "join", "--token", "-", "--host-name", host.name, "--address",
                      host.address, stdin=token)
        on_all(self.hosts[1:], join)
        for host in self.hosts:
            wait_for(lambda: sum(one["state"] == "alive" for one in host.snow_json("host", "ls"))
                     == len(self.hosts), "every host sees the others alive")

    def _let_go(self):
        """Ends all VMs, and waits until no host holds anything for another one."""
        alive = [host for host in self.hosts if host.pid and host.daemon.running]
        on_all(alive, lambda host: host.daemon._remove_vms())

        def nothing_held():
            about = [host.snow_json("info")["cluster"] for host in alive]
            return len(alive) < len(self.hosts) or not any(one and one["held"] for one in about)
        wait_for(nothing_held, "no host holds images for another", 20)

    def __exit__(self, kind, error, trace):
        left = []
        try:
            if error is None:
                self._let_go()
                left = sum(on_all([host for host in self.hosts if host.pid],
                                  lambda host: host.daemon.end()), [])
            elif kind is not SystemExit:
                self._show_logs()
        finally:
            self.end()
        expect(not left, "left behind:\n  " + "\n  ".join(left))
        return False

    def _show_logs(self):
        for host in self.hosts:
            if host.daemon is not None and host.daemon.process is not None:
                print(f"---- {host.name} ({host.address})", file=sys.stderr)
                host.daemon.show_log()
