#!/usr/bin/env python3
"""A guest is hostile, and so is a QEMU that it has taken over: what each QEMU may see and do, whom the
API's socket belongs to, and that a guest with a network does not reach the host's own services."""
import grp
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import SNOW, Daemon, expect, expect_equal, wait_for  # noqa: E402

SECRET = "hunter2-is-nobodys-business"
GROUP = "daemon"  # Debian always has it
BANNER = b"a service of the host\n"
SYSTEM = {"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "dev"}
WRITABLE = ("/vm/run", "/vm/memory", "/vm/overlay.qcow2")


def fields(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


def check_rights(pid):
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            status = fields(task / "status")
        except FileNotFoundError:
            continue  # a worker thread that has ended
        expect(len(set(status["Uid"] + status["Gid"])) == 1 and int(status["Uid"][0]) >= 700000,
               f"users of QEMU: {status['Uid']} {status['Gid']}")
        expect_equal(status["Groups"], [], "further groups")
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            expect_equal(int(status[kind][0], 16), 0, kind)
        expect_equal((status["NoNewPrivs"], status["Seccomp"]), (["1"], ["2"]),
                     "no new privileges, and a system call filter")


def check_view(pid, shares_network):
    """What it sees: the system's programs and its own files; what it can write: its own files."""
    root = pathlib.Path(f"/proc/{pid}/root")
    expect_equal({path.name for path in root.iterdir()} - SYSTEM, {"vm"}, "folders in its root")
    expect({path.name for path in (root / "etc").iterdir()} <=
           {"ld.so.cache", "resolv.conf", "hosts"}, "files in its /etc")
    expect({path.name for path in (root / "dev").iterdir()} <=
           {"null", "zero", "full", "random", "urandom", "kvm"}, "its devices")
    for line in pathlib.Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8").splitlines():
        point, options = line.split()[4:6]
        expect("nosuid" in options.split(","), f"{point} is mounted nosuid: {options}")
        if "rw" in options.split(","):
            expect(point in WRITABLE, f"it can write to {point}")
    for kind in ("mnt", "ipc", "uts", "net"):
        own = os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        expect_equal(own, not (kind == "net" and shares_network), f"{kind} namespace of its own")
    for what in ("cmdline", "environ"):
        expect(SECRET.encode() not in pathlib.Path(f"/proc/{pid}/{what}").read_bytes(),
               f"a variable of the guest is in its {what}")
    overlay = (root / "vm/overlay.qcow2").stat().st_mode & 0o777
    expect(overlay & 0o077 == 0, f"its disk is others' to read: {overlay:o}")


def check_cgroup(pid):
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        unified = any(line.split()[1:3] == ["/sys/fs/cgroup", "cgroup2"] for line in mounts)
    if not unified or not os.access("/sys/fs/cgroup/cgroup.procs", os.W_OK):
        print("SKIP: cgroup of a QEMU: this machine has no cgroup v2 that can be written")
        return
    path = next(line[3:] for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text(
        encoding="utf-8").splitlines() if line.startswith("0::"))
    ours = next(line[3:] for line in pathlib.Path("/proc/self/cgroup").read_text(
        encoding="utf-8").splitlines() if line.startswith("0::"))
    expect(path != ours, f"QEMU is in our own cgroup {path}")


def check_socket(daemon):
    group = grp.getgrnam(GROUP)
    status = os.stat(daemon.socket)
    expect_equal((status.st_mode & 0o777, status.st_gid), (0o660, group.gr_gid), "the API's socket")

    # A copy: the tree may lie where nobody else may enter, such as /root.
    snow = shutil.copy(SNOW, daemon.state_dir / "snow")

    def ps_as(groups):
        return subprocess.run([snow, "--socket", daemon.socket, "ps"], user=65534, group=65534,
                              extra_groups=groups, capture_output=True, text=True, check=False)
    stranger = ps_as([])
    expect_equal(stranger.returncode, 11, f"exit code for a stranger: {stranger.stderr}")
    expect_equal(ps_as([group.gr_gid]).returncode, 0, "exit code for a member of the group")


class Service:
    """Listens on all addresses of this host and greets who comes."""

    def __enter__(self):
        self.listener = socket.create_server(("", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def _serve(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            with peer:
                peer.sendall(BANNER)


def tables(daemon):
    """Our tables of nftables; their names end in the run folder's."""
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in listed.stdout.splitlines()
            if line.endswith(daemon.run_dir.name.replace("_", "_5f").replace("-", "_2d"))]


def own_address():
    """An address of this host that is not the loopback's, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return probe.getsockname()[0]


def check_network(daemon, service, vm):
    def ask(address):
        return daemon.shell(vm, f"nc -w 5 {address} {service.port} </dev/null", check=False)
    reached = [address for address in ("10.0.2.2", own_address()) if address and ask(address)]
    expect_equal(reached, [], f"addresses at which {vm} reaches a service of the host")
    daemon.shell(vm, "ping -c 1 -W 60 10.0.2.2 >/dev/null")


def check_networks(daemon):
    daemon.run_vm("tiny", name="n", net="user", env=[f"PASSWORD={SECRET}"])
    pid = daemon.inspect("n")["pid"]
    check_rights(pid)
    check_view(pid, shares_network=True)
    lease = daemon.shell("n", "ip link set eth0 up; udhcpc -i eth0 -n -q -s /bin/true 2>&1")
    expect("10.0.2.15" in lease, f"address by DHCP: {lease}")
    daemon.shell("n", "ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2")
    with Service() as service:
        check_network(daemon, service, "n")
        (clone,) = daemon.fork("n", 1)
        check_network(daemon, service, clone)
        check_network(daemon, service, "n")
        daemon.restart()
        check_network(daemon, service, clone)
        # Without the table the guest does get through (so this test would notice), and the daemon
        # puts the table back.
        subprocess.run(["nft", "delete", "table", "inet", *tables(daemon)], check=True)

        def ask():
            return daemon.shell("n", f"nc -w 5 10.0.2.2 {service.port} </dev/null", check=False)
        expect_equal(ask() + "\n", BANNER.decode(), "without the table")
        wait_for(lambda: tables(daemon), "the table is put back")
        check_network(daemon, service, "n")
    daemon.snow("rm", "--force", "n", clone)


def main():
    with Daemon(images=["tiny"], settings={"api_group": GROUP}) as daemon:
        daemon.run_vm("tiny", name="a", env=[f"PASSWORD={SECRET}"])
        daemon.fork("a", 1)
        users = set()
        for vm in ("a", "a.1"):
            pid = daemon.inspect(vm)["pid"]
            check_rights(pid)
            check_view(pid, shares_network=False)
            check_cgroup(pid)
            users.add(os.stat(f"/proc/{pid}").st_uid)
        expect_equal(len(users), 2, "users of two QEMUs")
        expect_equal(daemon.shell("a", "echo $PASSWORD"), SECRET, "the guest has its variable")
        check_socket(daemon)
        check_networks(daemon)
        keep = daemon
    expect_equal(tables(keep), [], "tables of nftables that are left")


if __name__ == "__main__":
    main()
