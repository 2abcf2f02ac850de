"""The lab's network: hosts on one bridge in a namespace of its own; rates, loss, partitions.

Each host has one interface, eth0; its other end is a port of the bridge, named like the host. A link's
rate is shaped (tbf) where packets enter it: at eth0 for what the host sends, at the port for what it
gets. Loss and the like are rules of nftables at the port, each for packets and each direction by
itself: from the host at the port's ingress, after its shaping; to the host at the port's egress, before it.
With 10 percent both ways a request and its answer both arrive in 81 percent of the cases. ARP is
spared by all but a partition: it is tried again after whole seconds only.

Kernels hand packets on in large pieces (segmentation offload) where they may, and a lost piece would be
16 packets or more. So the first fault makes all hosts send real packets, from then on. And it makes
their TCP wait for an answer as short as suits a network of microseconds: by itself it waits 200 ms
before it sends a lost packet again, and tests of loss would mostly wait.
"""
import dataclasses
import json
import re
import subprocess
import sys

from lab import late

NETWORK = "10.77.0"
BRIDGE = "bridge0"
FABRIC = "net"
QUEUE_S = 0.02      # what a port holds back at most: a switch's buffer
BURST_S = 0.001
MIN_BURST = 16 << 10
MIN_QUEUE = 256 << 10
RTO_MS = 5          # TCP sends again what was not confirmed for so long, at the earliest
LATE_MS = 5         # how long packets are held back that are to arrive after later ones
# Of a host in a network with faults.
FAULTY = f"""
            link set eth0 gso_max_segs 1
            route change {NETWORK}.0/24 dev eth0 rto_min {RTO_MS}ms"""
RATE_UNITS = {"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def rate_bits(text):
    """Bits per second of what tc calls a rate: "1gbit", "100mbit"."""
    found = re.fullmatch(r"([\d.]+)([kmg]?bit)", text.lower())
    if not found:
        raise ValueError(f"{text!r} is no rate: 100mbit, 1gbit, ...")
    return float(found[1]) * RATE_UNITS[found[2]]


@dataclasses.dataclass
class Faults:
    """What is wrong with a link; percent of its packets."""
    loss_from: float = 0
    loss_to: float = 0
    duplicate: float = 0
    reorder: float = 0
    cut: bool = False
    cut_from: tuple = ()  # addresses that it cannot talk with


def _chance(percent):
    return f"numgen random mod 1000000 < {round(percent * 10000)}"


def _rules(port, faults, multicast):
    """The two chains of a port."""
    arriving, leaving = [], []
    if faults.cut:
        arriving.append("drop")
        leaving.append("drop")
    for address in faults.cut_from:
        arriving.append(f"ip daddr {address} drop")
        leaving.append(f"ip saddr {address} drop")
    if not multicast:
        arriving.append("ip daddr 224.0.0.0/4 drop")
    if faults.loss_from:
        arriving.append(f"ether type ip {_chance(faults.loss_from)} drop")
    if faults.loss_to:
        leaving.append(f"ether type ip {_chance(faults.loss_to)} drop")
    if faults.duplicate:  # the copy passes here again: the mark spares it
        leaving.append(f"ether type ip meta mark 0 {_chance(faults.duplicate)} "
                       f'meta mark set 1 dup to "{port}"')
    if faults.reorder:
        leaving.append(f"ether type ip meta mark != {late.MARK} {_chance(faults.reorder)} "
                       f'fwd to "{late.tap_of(port)}"')
    text = ""
    for hook, rules in (("ingress", arriving), ("egress", leaving)):
        if rules:
            text += (f'chain {hook}_{port} {{ type filter hook {hook} device "{port}" priority 0;\n'
                     + "\n".join(rules) + "\n}\n")
    return text


def _run(namespace, *command, check=True):
    """What it prints. Only the network is entered: tc wants a /proc that knows itself."""
    return namespace.run(command, check=check, spaces=("net",)).stdout


def _feed(namespace, command, text):
    namespace.run(command, text_in=text, spaces=("net",))


class Network:
    """The bridge and its links. `nodes`: what has a link, by name. Not thread-safe."""

    def __init__(self, fabric):
        self.fabric = fabric       # the bridge's namespace
        self.nodes = {}
        self.faults = {}
        self.rates = {}
        self.multicast = True
        self.real_packets = False
        self.holders = {}          # name -> process of late.py
        # Flooding: every port gets every multicast packet, as from a switch without snooping.
        _feed(self.fabric, ["ip", "-batch", "-"], f"""
            link add {BRIDGE} type bridge mcast_snooping 0 forward_delay 0
            link set {BRIDGE} up
            link set lo up""")

    def connect(self, node, number, rate=None):
        """Gives the node, which has just booted, its interface and the address `number`."""
        port = node.name
        self.nodes[port] = node
        self.faults.setdefault(port, Faults())
        mac = f"02:77:00:00:00:{number:02x}"
        _feed(self.fabric, ["ip", "-batch", "-"], f"""
            link add {port} type veth peer name eth0 address {mac} netns {node.pid}
            link set {port} master {BRIDGE} up""")
        _feed(node, ["ip", "-batch", "-"], f"""
            link set lo up
            addr add {node.address}/24 brd + dev eth0
            link set eth0 up
            route add 224.0.0.0/4 dev eth0
            {FAULTY if self.real_packets else ""}""")
        self.set_rate(port, self.rates.get(port) or rate)
        self._apply()

    def disconnect(self, name):
        """The node has ended, and its interfaces with it; what was set for it is kept."""
        self.nodes.pop(name, None)
        # The kernel would do it, but only later than a new start of the host.
        _run(self.fabric, "ip", "link", "del", name, check=False)
        self._apply()

    def set_rate(self, name, rate):
        """Shapes a link, both directions; rate as for tc ("1gbit"), None: as fast as it goes."""
        self.rates[name] = rate
        ends = ((self.fabric, name), (self.nodes[name], "eth0"))
        for namespace, interface in ends:
            _run(namespace, "tc", "qdisc", "del", "dev", interface, "root", check=False)
        if rate:
            bytes_s = rate_bits(rate) / 8
            burst = max(MIN_BURST, int(bytes_s * BURST_S))
            queue = max(MIN_QUEUE, int(bytes_s * QUEUE_S))
            shape = f"tbf rate {rate} burst {burst} limit {queue}"
            for namespace, interface in ends:
                _run(namespace, "tc", "qdisc", "add", "dev", interface, "root", *shape.split())

    # ---- faults

    def change(self, name, **what):
        """Sets fields of the link's Faults."""
        before = self.faults[name]
        self.faults[name] = dataclasses.replace(before, **what)
        if self.faults[name] != Faults() and not self.real_packets:
            self.real_packets = True
            for node in self.nodes.values():
                _feed(node, ["ip", "-batch", "-"], FAULTY)
        self._apply()

    def _hold_back(self):
        """For each port that needs one, a program that holds packets back."""
        for name, process in list(self.holders.items()):
            if name not in self.nodes or not self.faults[name].reorder:
                self.fabric.end(process)
                del self.holders[name]
        for name in self.nodes:
            if self.faults[name].reorder and name not in self.holders:
                process = self.fabric.popen([sys.executable, "-S", late.__file__, name, LATE_MS],
                                            stdout=subprocess.PIPE, text=True)
                self.holders[name] = process
                if "ready" not in process.stdout.readline():
                    raise RuntimeError(f"{late.__file__} does not start for {name}")

    def pass_multicast(self, passes):
        self.multicast = passes
        self._apply()

    def _apply(self):
        """All rules at once: there is no moment without those that stay."""
        self._hold_back()
        chains = "".join(_rules(name, self.faults[name], self.multicast) for name in self.nodes)
        _feed(self.fabric, ["nft", "-f", "-"],
              f"table netdev lab\ndelete table netdev lab\ntable netdev lab {{\n{chains}}}\n")

    # ---- figures

    def traffic(self):
        """{name: {"sent": bytes, "received": bytes}} of each link since it was connected: the
        host's view, Ethernet headers included."""
        found = json.loads(_run(self.fabric, "ip", "-j", "-s", "link", "show", "master", BRIDGE))
        return {link["ifname"]: {"sent": link["stats64"]["rx"]["bytes"],
                                 "received": link["stats64"]["tx"]["bytes"]}
                for link in found if link.get("ifname") in self.nodes}
