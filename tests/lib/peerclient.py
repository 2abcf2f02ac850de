"""A peer by hand, for what a snowd would never say: another version, a stranger's certificate.

    python3 peerclient.py ADDRESS:PORT JSON

JSON: {"version", "host", "service", and for TLS "cert", "key" (files) or {"anonymous": true}; without
either: plain TCP}. Sends a hello and prints, as JSON, how it was answered: {"type", "code", "text"} of the
answering frame, or {"alert": why} when there is none. docs/peer-protocol.md has the bytes.
"""
import json
import socket
import ssl
import struct
import sys

TIMEOUT_S = 20
HELLO, ERROR = 1, 2


def hello(version, host, service):
    body = b"SNOWPEER" + struct.pack("<H", version)
    for text in (host, service):
        body += bytes([len(text)]) + text.encode()
    return struct.pack("<IB", len(body) + 1, HELLO) + body


def exactly(connection, count):
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("closed without an answer")
        data += part
    return data


def secured(connection, wanted):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is the other side that is tested
    if "cert" in wanted:
        context.load_cert_chain(wanted["cert"], wanted["key"])
    return context.wrap_socket(connection)


def talk(address, wanted):
    ip, port = address.rsplit(":", 1)
    with socket.create_connection((ip, int(port)), TIMEOUT_S) as connection:
        if "cert" in wanted or wanted.get("anonymous"):
            connection = secured(connection, wanted)
        connection.sendall(hello(wanted["version"], wanted["host"], wanted["service"]))
        length, kind = struct.unpack("<IB", exactly(connection, 5))
        payload = exactly(connection, length - 1)
        connection.close()
    if kind == ERROR:
        return {"type": kind, "code": payload[0], "text": payload[1:].decode()}
    return {"type": kind, "code": 0, "text": ""}


def main():
    try:
        answer = talk(sys.argv[1], json.loads(sys.argv[2]))
    except OSError as error:
        answer = {"alert": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
