"""What the benches have in common: figures with their targets, percentiles, the API without a program's start."""
import http.client
import json
import socket

from snowtest import expect


class Figures:
    """Prints each figure with what it must reach; the last line of a bench is all of them as JSON."""

    def __init__(self, targets):
        """targets: {key: (value, "most" or "least")}; None: reported only."""
        self.targets = targets
        self.values = {}

    def report(self, key, value, note=""):
        self.values[key] = round(value, 3)
        text = ""
        if self.targets.get(key):
            target, kind = self.targets[key]
            met = value <= target if kind == "most" else value >= target
            text = f"   at {kind} {target:g}: {'met' if met else 'MISSED'}"
        print(f"{key:<26} {value:>10.2f}{text}{'   ' + note if note else ''}", flush=True)

    def end(self):
        print(json.dumps(self.values))


class Api(http.client.HTTPConnection):
    """A daemon's API by its socket."""

    def __init__(self, path):
        super().__init__("snowd")
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def call(self, method, path, body=None):
        self.request(method, "/v1" + path, None if body is None else json.dumps(body),
                     {"Content-Type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        expect(answer.status < 300, f"{method} {path}: {answer.status} {text.decode()}")
        return json.loads(text) if text else None


def percentile(values, percent):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
