"""A lab's hosts as one cluster, for the benches: forks over hosts, and what the exchange moved."""
import time

from measure import Api
from snowlab import Lab
from snowtest import expect, wait_for

PAGE = 4096
FILL_S = 3600


class Cluster:
    """Hosts in a cluster; requests go to the first one's API. One thread, but for detach()."""

    def __init__(self, lab):
        self.lab = lab
        self.imported = set()
        lab.make_cluster()
        self.apis = {host.name: self.api_of(host) for host in lab.hosts}
        self.api = self.apis[lab.hosts[0].name]

    @staticmethod
    def api_of(host):
        return Api(host.path(host.daemon.socket))

    def inspect(self, vm):
        return self.api.call("GET", f"/vms/{vm}")

    def start(self, name, touched_mib=0, image="tiny", **options):
        """A VM on the first host whose memory holds a pattern."""
        daemon = self.lab.hosts[0].daemon
        if image not in self.imported:
            daemon.import_image(image)
            self.imported.add(image)
        daemon.run_vm(image, name=name, **options)
        if touched_mib:
            daemon.exec(name, "/opt/test/pattern", "serve", touched_mib)
        return name

    def ticket(self, vm, count=1, place="spread", hosts=None):
        """Room for a fork. From now on the hosts have the VM's kernel and initrd, and keep them."""
        wait_for(lambda: (self.inspect(vm).get("frozen") or {"settled": True})["settled"],
                 f"{vm}: the last fork has settled")
        where = {"hosts": hosts} if hosts else {"place": place}
        return self.api.call("POST", f"/vms/{vm}/tickets", {"count": count, **where})["ticket"]

    def give_back(self, ticket):
        self.api.call("DELETE", f"/tickets/{ticket}")

    def fork(self, vm, count=1, place="spread", hosts=None, ticket=None):
        """One fork, with a ticket made before if none is given; steps in ms, the clones, the ticket."""
        ticket = ticket or self.ticket(vm, count, place, hosts)
        start = time.monotonic()
        fork = self.api.call("POST", f"/vms/{vm}/fork", {"ticket": ticket})
        fork["steps"]["request"] = (time.monotonic() - start) * 1000
        expect(not fork["undone"], f"fork of {vm}: not done: {fork['undone']}")
        return fork

    def end(self, fork):
        """Ends a fork's clones; they are gone when this returns."""
        self.api.call("POST", f"/tickets/{fork['ticket']}/kill")
        self.api.call("POST", f"/tickets/{fork['ticket']}/join", {})

    def remove(self, vm):
        self.api.call("DELETE", f"/vms/{vm}?force=true")

    def host_of(self, clone):
        """The lab's host that a clone runs on."""
        return next(host for host in self.lab.hosts if host.name == clone["host"])

    def detach(self, clone, timeout_s=600):
        """Fetches all that the clone's images miss; seconds. Thread-safe."""
        api = self.api_of(self.host_of(clone))
        start = time.monotonic()
        api.call("POST", f"/vms/{clone['id']}/detach", {"timeout_ms": timeout_s * 1000})
        return time.monotonic() - start

    def exchange(self, host):
        """The exchange's statistics of a host: offers and layers."""
        return self.apis[host.name].call("GET", f"/hosts/{host.name}")["exchange"]

    def pages_received(self, host):
        """Pages that crossed the wire to the host and were kept, of all images."""
        return sum(lane["pages"] for layer in self.exchange(host)["layers"]
                   for lane in (*layer["from_origin"].values(), *layer["from_peers"].values(),
                                layer["from_multicast"]))


def quiet(**more):
    """Settings of snowd under which nothing is fetched but what a guest or a request asks for."""
    return {"fill_after_seconds": FILL_S, "fill_rate_bytes": 0, **more}


def cluster_lab(hosts, rate=None, **settings):
    """Hosts without images: a fork brings a VM's disk along, as it does its memory."""
    return Lab(hosts=hosts, rate=rate, images=[], settings=quiet(**settings))
