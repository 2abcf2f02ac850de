"""What the lab's network gives: bare TCP by netprobe (lab/netprobe.cc), and datagrams by small programs.

    with Server(build, lab.hosts[0]) as server:
        server.rtt(lab.hosts[1])["p50_us"]
        server.stream(lab.hosts[1], 1 << 30)["mbit_s"]
"""
import json
import subprocess
import sys

from lab.machines import LabFailure

PORT = 7700
_SEND = """
import socket, sys, time
to, port, count, gap_s = sys.argv[1], *map(float, sys.argv[2:5])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
for number in range(int(count)):
    s.sendto(number.to_bytes(4, "big") + bytes(1000), (to, int(port)))
    if gap_s:
        time.sleep(gap_s)
"""
_RECEIVE = """
import json, select, socket, sys
me, group, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE: what gets lost, the network has lost
s.bind((group or me, port))
if group:
    s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                 socket.inet_aton(group) + socket.inet_aton(me))
print("ready", flush=True)
got, wait_s = [], None
while True:
    found = select.select([s] if wait_s else [s, 0], [], [], wait_s)[0]
    if s in found:
        got.append(int.from_bytes(s.recv(2000)[:4], "big"))
    elif found:
        wait_s = 0.3  # all has been sent
    else:
        break
late = sum(later < earlier for earlier, later in zip(got, got[1:]))
print(json.dumps({"received": len(got), "distinct": len(set(got)), "late": late}))
"""


class Server:
    """netprobe serving on a host; ends with the block."""

    def __init__(self, build_dir, host, port=PORT, file=None):
        """file: what stream() sends."""
        self.program = build_dir / "lab/netprobe"
        self.host, self.port, self.file = host, port, file
        self.process = None

    def __enter__(self):
        if not self.program.exists():
            raise LabFailure(f"{self.program} is not built: ./dev build makes it")
        self.process = self.host.popen([self.program, "serve", self.host.address, self.port,
                                        *([self.file] if self.file else [])],
                                       stdout=subprocess.PIPE, text=True)
        if "serving" not in self.process.stdout.readline():
            raise LabFailure(f"netprobe does not serve on {self.host.name}")
        return self

    def __exit__(self, *_):
        self.host.end(self.process)

    def _measure(self, host, mode, *arguments):
        return json.loads(host.run([self.program, mode, self.host.address, self.port,
                                    *arguments]).stdout)

    def rtt(self, host, count=5000, reply_bytes=4096):
        """Request and reply between host and server: min_us, p50_us, p99_us, max_us."""
        return self._measure(host, "rtt", count, reply_bytes)

    def stream(self, host, size_bytes, file=None):
        """A stream from the server to the host, there into a file: seconds, mbit_s."""
        return self._measure(host, "stream", size_bytes, *([file] if file else []))


def datagrams(sender, receivers, group="", count=1000, gap_s=0.0005, port=PORT):
    """Sends numbered UDP packets of 1004 bytes to a multicast group, or to the first receiver; for each
    receiver how many came, how many different ones, and how many after a later one."""
    started = []
    try:
        for host in receivers:
            started.append(host.popen([sys.executable, "-S", "-c", _RECEIVE, host.address, group,
                                       port], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      text=True))
        for process in started:
            process.stdout.readline()
        sender.run([sys.executable, "-S", "-c", _SEND, group or receivers[0].address, port, count,
                    gap_s])
        return [json.loads(process.communicate(timeout=60)[0]) for process in started]
    finally:
        for host, process in zip(receivers, started):
            host.end(process)
