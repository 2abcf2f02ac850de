#!/usr/bin/env python3
"""Asks a real daemon for every operation of api/openapi.yaml and validates status and schema.

An operation that the document has and this test does not ask for is a failure, so that the two
cannot part. Errors are checked as well: every operation on a thing that is not there, and every body
with a field that nobody knows.
"""
import http.client
import json
import pathlib
import re
import socket
import struct
import sys
import tempfile
import time
import urllib.parse

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/lib"))

METHODS = ("get", "post", "put", "delete")
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
REQUEST_S = 240


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path):
        super().__init__("snow", timeout=REQUEST_S)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Document:
    """The OpenAPI document: its operations, and a check of values against its schemas."""

    def __init__(self, text):
        self.root = yaml.safe_load(text)
        self.operations = {}
        for path, item in self.root["paths"].items():
            for method in METHODS:
                if method in item:
                    self.operations[item[method]["operationId"]] = (method.upper(), path,
                                                                    item[method])

    def resolve(self, node):
        while "$ref" in node:
            target = self.root
            for key in node["$ref"].removeprefix("#/").split("/"):
                target = target[key]
            node = target
        return node

    def problems(self, value, schema, where):
        """What of the value does not fit the schema, as lines."""
        schema = self.resolve(schema)
        if value is None:
            return [] if schema.get("nullable") else [f"{where}: is null"]
        kind = schema.get("type")
        if kind == "number":
            fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        else:
            fits = kind is None or (isinstance(value, TYPES[kind]) and
                                    (kind == "boolean" or not isinstance(value, bool)))
        if not fits:
            return [f"{where}: {value!r} is no {kind}"]
        found = []
        if "enum" in schema and value not in schema["enum"]:
            found.append(f"{where}: {value!r} is none of {schema['enum']}")
        if "minimum" in schema and value < schema["minimum"]:
            found.append(f"{where}: {value} is below {schema['minimum']}")
        if "pattern" in schema and not re.search(schema["pattern"], value):
            found.append(f"{where}: {value!r} does not match {schema['pattern']}")
        if schema.get("format") == "date-time" and not TIME.fullmatch(value):
            found.append(f"{where}: {value!r} is no UTC time of RFC 3339")
        if kind == "array":
            for i, entry in enumerate(value):
                found += self.problems(entry, schema["items"], f"{where}[{i}]")
        if kind == "object":
            known = schema.get("properties", {})
            found += [f"{where}: has no {key}" for key in schema.get("required", [])
                      if key not in value]
            more = schema.get("additionalProperties", True)
            for key, entry in value.items():
                if key in known:
                    found += self.problems(entry, known[key], f"{where}.{key}")
                elif more is False:
                    found.append(f"{where}: unknown field {key}")
                elif isinstance(more, dict):
                    found += self.problems(entry, more, f"{where}.{key}")
        return found


class Api:
    """Asks for operations by their id and checks each answer against the document."""

    def __init__(self, socket_path):
        self.socket_path = socket_path
        _, body = self.send("GET", "/v1/openapi.yaml", None, {})
        self.document = Document(body)
        self.asked = {"openapi"}

    def send(self, method, path, body, headers):
        connection = Connection(self.socket_path)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def url(self, template, names, query):
        path = re.sub(r"\{(\w+)\}", lambda m: urllib.parse.quote(names[m[1]], safe=""), template)
        return "/v1" + path + ("?" + urllib.parse.urlencode(query) if query else "")

    def check_error(self, what, status, body, wanted_status, wanted_code):
        value = json.loads(body)
        found = self.document.problems(value, {"$ref": "#/components/schemas/Error"}, what)
        if not found and (status, value["code"]) != (wanted_status, wanted_code):
            found = [f"{what}: {status} {value}, not {wanted_status} {wanted_code}"]
        if found:
            raise AssertionError("\n".join(found))

    def ask(self, operation, body=None, query=None, **names):
        """The answer's JSON (bytes if it is not JSON), after the check."""
        method, path, spec = self.document.operations[operation]
        raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        status, answer = self.send(method, self.url(path, names, query), raw, {})
        self.asked.add(operation)
        response = spec["responses"].get(str(status))
        if response is None:
            raise AssertionError(f"{operation}: status {status} {answer[:500]!r}")
        content = self.document.resolve(response).get("content", {})
        if "application/json" not in content:
            return answer
        value = json.loads(answer)
        found = self.document.problems(value, content["application/json"]["schema"], operation)
        if found:
            raise AssertionError("\n".join(found))
        return value

    def upgrade(self, operation, body, **names):
        """The status, and the connection when it was upgraded."""
        method, path, _ = self.document.operations[operation]
        raw = json.dumps(body).encode()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(REQUEST_S)
        connection.connect(self.socket_path)
        connection.sendall((f"{method} {self.url(path, names, None)} HTTP/1.1\r\nHost: snow\r\n"
                            "Connection: Upgrade\r\nUpgrade: snow-stream\r\n"
                            f"Content-Length: {len(raw)}\r\n\r\n").encode() + raw)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = connection.recv(1)
            if not byte:
                break
            head += byte
        self.asked.add(operation)
        status = int(head.split()[1])
        if status != 101:
            raise AssertionError(f"{operation}: {head!r}")
        return connection


def frames(connection):
    """(channel, bytes) of an upgraded connection until its end."""
    stream = connection.makefile("rb")
    while len(head := stream.read(5)) == 5:
        channel, size = struct.unpack(">BI", head)
        yield channel, stream.read(size)


def check_errors(api):
    """Operations on what is not there, and bodies with an unknown field."""
    bodies = {"fork": {}, "reserve": {"count": 1}, "snapshot": {"name": "x"},
              "exec": {"argv": ["true"]}, "drain_host": {"drain": True}}
    for operation, (method, path, spec) in api.document.operations.items():
        missing = {name: "no-such-thing" for name in re.findall(r"\{(\w+)\}", path)}
        query = {"path": "/etc/hostname"} if path.endswith("/file") else None
        headers = {}
        if operation in ("exec", "console"):
            headers = {"Connection": "Upgrade", "Upgrade": "snow-stream"}
        if missing:
            body = json.dumps(bodies[operation]) if operation in bodies else None
            status, answer = api.send(method, api.url(path, missing, query),
                                      b"" if method == "PUT" else body, headers)
            # Without a cluster there are no hosts to look among.
            wanted = (409, "wrong_state") if "host" in missing else (404, "not_found")
            api.check_error(f"{operation} of nothing", status, answer, *wanted)
        if method == "POST":
            status, answer = api.send(method, api.url(path, missing, None),
                                      '{"no_such_field": 1, "argv": ["x"]}', headers)
            api.check_error(f"{operation} with an unknown field", status, answer, 400, "usage")
    status, answer = api.send("GET", "/v1/no/such/path", None, {})
    api.check_error("unknown path", status, answer, 404, "not_found")
    status, answer = api.send("DELETE", "/v1/info", None, {})
    api.check_error("unknown method", status, answer, 400, "usage")


def check_images(api, folder):
    disk = pathlib.Path(folder) / "disk.raw"
    disk.write_bytes(b"\0" * (1 << 20))
    api.ask("import_image", {"name": "probe", "file": str(disk)})
    api.ask("get_image", image="probe")
    api.ask("remove_image", image="probe")
    api.ask("list_images")


def check_guest(api, vm):
    content = b"through the API\n" * 10_000
    api.ask("write_file", content, {"path": "/tmp/openapi", "mode": "600"}, vm=vm)
    got = api.ask("read_file", query={"path": "/tmp/openapi"}, vm=vm)
    if got != content:
        raise AssertionError(f"read_file: {len(got)} bytes, not what was written")
    with api.upgrade("exec", {"argv": ["sh", "-c", "echo out; echo err >&2; exit 7"]},
                     vm=vm) as connection:
        all_frames = list(frames(connection))
    wanted = [b"out\n", b"err\n", b'{"exit":7}']
    for channel in (1, 2, 3):
        got = b"".join(data for number, data in all_frames if number == channel)
        if got != wanted[channel - 1]:
            raise AssertionError(f"exec: channel {channel} has {got!r}")
    api.upgrade("console", {}, vm=vm).close()
    api.ask("logs", vm=vm)


def check_forks(api, vm):
    ticket = api.ask("reserve", {"count": 1}, vm=vm)["ticket"]
    api.ask("list_tickets")
    method, path, _ = api.document.operations["fork"]
    status, answer = api.send(method, api.url(path, {"vm": vm}, None),
                              json.dumps({"ticket": ticket, "count": 1}), {})
    api.check_error("fork with ticket and count", status, answer, 400, "invalid")
    fork = api.ask("fork", {"ticket": ticket, "wait_for_ready": False}, vm=vm)
    clone = fork["clones"][0]["id"]
    deadline = time.monotonic() + REQUEST_S
    while not api.ask("inspect", vm=clone)["agent"]:
        if time.monotonic() > deadline:
            raise AssertionError("the agent of a clone that was not waited for does not answer")
        time.sleep(0.1)
    if api.ask("kill_ticket", ticket=ticket) != {"count": 1}:
        raise AssertionError("kill_ticket: not one clone")
    ticket = api.ask("reserve", {"count": 1}, vm=vm)["ticket"]
    api.ask("give_back", ticket=ticket)
    fork = api.ask("fork", {"count": 2, "parameters": {"k": "v"}}, vm=vm)
    if len(fork["clones"]) != 2 or fork["parent"]["id"] != vm:
        raise AssertionError(f"fork: {fork}")
    api.ask("kill_ticket", ticket=fork["ticket"])
    joined = api.ask("join", {"timeout_ms": 60_000}, ticket=fork["ticket"])
    if [clone["how"] for clone in joined["clones"]] != ["killed", "killed"]:
        raise AssertionError(f"join: {joined}")
    api.ask("snapshot", {"name": "probe"}, vm=vm)
    api.ask("get_snapshot", snapshot="probe")
    api.ask("list_snapshots")
    started = api.ask("run", {"from": "probe"})[0]["id"]
    api.ask("kill", vm=started)
    api.ask("remove", vm=started, query={"force": "true"})
    api.ask("remove_snapshot", snapshot="probe")


def check_cluster(api, vm):
    """A cluster of one host, and a VM of the time before it."""
    for operation, body in (("list_hosts", None), ("make_join_token", {})):
        method, path, _ = api.document.operations[operation]
        status, answer = api.send(method, api.url(path, {}, None), body and json.dumps(body), {})
        api.check_error(f"{operation} without a cluster", status, answer, 409, "wrong_state")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (host,) = api.ask("make_cluster", {"name": "contract", "host_name": "one",
                                       "address": f"127.0.0.1:{port}", "plain": True})
    if (host["name"], host["self"]) != ("one", True):
        raise AssertionError(f"make_cluster: {host}")
    method, path, _ = api.document.operations["join_cluster"]
    status, answer = api.send(method, api.url(path, {}, None),
                              json.dumps({"token": "x", "address": "127.0.0.1"}), {})
    api.check_error("join_cluster of a member", status, answer, 409, "exists")
    api.asked.add("join_cluster")
    api.ask("list_hosts")
    api.ask("make_join_token", {"seconds": 60})
    if "exchange" not in api.ask("get_host", host="one"):
        raise AssertionError("get_host: no exchange")
    if api.ask("drain_host", {"drain": True}, host="one")["state"] != "drained":
        raise AssertionError("drain_host: not drained")
    api.ask("drain_host", {"drain": False}, host=host["id"])
    method, path, _ = api.document.operations["remove_host"]
    status, answer = api.send(method, api.url(path, {"host": "one"}, None), None, {})
    api.check_error("remove_host of itself", status, answer, 409, "wrong_state")
    api.asked.add("remove_host")
    if api.ask("inspect", vm=vm)["host"] != "one":
        raise AssertionError("inspect: the VM has another host")
    api.ask("detach", {"timeout_ms": 60_000}, vm=vm)
    api.ask("fork", {"count": 1, "place": "local"}, vm=vm)
    cluster = api.ask("info")["cluster"]
    if (cluster["name"], cluster["host_name"]) != ("contract", "one"):
        raise AssertionError(f"info: {cluster}")


def check_events(api):
    """What happened so far; the stream itself goes on, so it is read by hand."""
    method, path, spec = api.document.operations["events"]
    schema = spec["responses"]["200"]["content"]["application/x-ndjson"]["schema"]
    connection = Connection(api.socket_path)
    connection.request(method, api.url(path, {}, {"after": 1}))
    answer = connection.getresponse()
    line = b""
    while not line.strip():
        line = answer.readline()
        if not line:
            raise AssertionError("events: the stream ended")
    connection.close()
    api.asked.add("events")
    found = api.document.problems(json.loads(line), schema, "event")
    if found:
        raise AssertionError("\n".join(found))


def check_all(socket_path, image):
    api = Api(socket_path)
    api.ask("info")
    check_errors(api)
    with tempfile.TemporaryDirectory(prefix="snow-openapi-") as folder:
        check_images(api, folder)
    started = api.ask("run", {"image": image, "name": "contract", "wait_for_agent": True})[0]
    vm = started["id"]
    if not started["agent"]:  # once the wait for it kept the agent from being heard
        raise AssertionError(f"run waited for the agent and came back without: {started['undone']}")
    api.ask("inspect", vm=vm)
    api.ask("pause", vm=vm)
    api.ask("resume", vm=vm)
    check_guest(api, vm)
    check_forks(api, vm)
    check_cluster(api, vm)
    api.ask("stop", {"timeout_ms": 60_000}, vm=vm)
    api.ask("list_vms", query={"all": "true"})
    check_events(api)
    api.ask("remove", vm=vm)
    left_out = sorted(set(api.document.operations) - api.asked)
    if left_out:
        raise AssertionError(f"operations of openapi.yaml that this test does not ask for: {left_out}")
    print(f"{len(api.asked)} operations as api/openapi.yaml says")


def main():
    from snowtest import Daemon
    with Daemon(images=["tiny"]) as daemon:
        check_all(str(daemon.socket), "tiny")


if __name__ == "__main__":
    main()
