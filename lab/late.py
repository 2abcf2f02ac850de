"""Holds packets back, so that they arrive after later ones: `late.py PORT DELAY_MS`, in the bridge's namespace.

The rules of the port (lab/network.py) send some packets to the tap that this makes, late-PORT. Each is
sent out of the port DELAY_MS later, marked, so that the rules let it pass. This kernel's packet
schedulers have rates, but no delay. Says "ready"; runs until it is killed, and the tap goes with it.
"""
import collections
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME_LIMIT = 65536
HELD_LIMIT = 20000
MARK = 2


def tap_of(port):
    return f"late-{port}"


def open_tap(name):
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    return tap


def hold(tap, out, delay_s):
    held = collections.deque()
    while True:
        wait_s = max(0, held[0][0] - time.monotonic()) if held else None
        if select.select([tap], [], [], wait_s)[0] and len(held) < HELD_LIMIT:
            held.append((time.monotonic() + delay_s, os.read(tap, FRAME_LIMIT)))
        while held and held[0][0] <= time.monotonic():
            try:
                out.send(held.popleft()[1])
            except OSError:
                pass  # the host has just ended, or its queue is full: the packet is lost


def main():
    port, delay_s = sys.argv[1], float(sys.argv[2]) / 1000
    tap = open_tap(tap_of(port))
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    out.bind((port, 0))
    print("ready", flush=True)
    hold(tap, out, delay_s)


if __name__ == "__main__":
    main()
