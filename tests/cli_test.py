#!/usr/bin/env python3
"""What people type: output formats, exec's exit codes, console and terminals, logs, copies, events, the
tree, several VMs in one command."""
import fcntl
import hashlib
import json
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import SNOW, Daemon, expect, expect_equal, wait_for  # noqa: E402

READ_S = 60


class Running:
    """`snow ARGUMENTS` that goes on; on a terminal of its own if asked for."""

    def __init__(self, daemon, *arguments, terminal=None):
        command = [str(SNOW), "--socket", daemon.socket, *arguments]
        if terminal:
            self.fd, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *terminal, 0, 0))
            self.before = termios.tcgetattr(slave)
            self.slave = slave
            self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave,
                                            start_new_session=True)
        else:
            self.slave = None
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self.fd = self.process.stdout.fileno()
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        else:
            os.close(self.fd)
            os.close(self.slave)

    def wait_text(self, wanted):
        """Reads until the text is there; all that was read so far."""
        deadline = time.monotonic() + READ_S
        while wanted not in self.text:
            left = deadline - time.monotonic()
            expect(left > 0, f"{wanted!r} does not come; what came: {self.text!r}")
            if select.select([self.fd], [], [], left)[0]:
                piece = os.read(self.fd, 65536)
                expect(piece, f"the end came before {wanted!r}: {self.text!r}")
                self.text += piece.decode(errors="replace")
        return self.text

    def write(self, text):
        os.write(self.fd, text.encode())


def check_formats(daemon):
    lines = daemon.snow("ps").splitlines()
    expect(lines[0].split()[:3] == ["ID", "NAME", "STATE"], f"heading of ps: {lines[0]}")
    expect(lines[1].split()[1:3] == ["a", "running"], f"line of ps: {lines[1]}")
    expect_equal(daemon.snow("ps", "-o", "name").strip(), "a", "ps -o name")
    expect_equal(daemon.snow("-o", "json", "ps"), daemon.snow("ps", "-o", "json"),
                 "-o before and behind the command")
    expect_equal(daemon.snow("image", "ls", "-o", "name").strip(), "tiny", "image ls -o name")
    expect("--" in daemon.snow("run", "--help"), "help on stdout")
    daemon.snow_fails("ps", "-o", "xml", code=2)
    daemon.snow_fails("nonsense", code=2, says="snow --help")
    for shell in ("bash", "zsh", "fish"):
        script = daemon.snow("completion", shell)
        expect("snapshot" in script and "fork" in script, f"completion of {shell}")
    subprocess.run(["bash", "-n"], input=daemon.snow("completion", "bash"), text=True, check=True)


def check_exec(daemon):
    def code(*argv):
        return daemon.snow_result("exec", "a", "--", *argv).returncode
    expect_equal(code("/no/such/program"), 127, "a program that is not there")
    expect_equal(code("/etc/hostname"), 126, "a file that cannot be run")
    expect_equal(code("sh", "-c", "kill -9 $$"), 137, "a program that signal 9 ended")
    expect_equal(code("sh", "-c", "exit 200"), 200, "exit 200")
    daemon.snow_fails("exec", "nobody", "--", "true", code=125, says="nobody")
    expect_equal(daemon.snow("exec", "-w", "/data", "-e", "X=1 2", "a", "--", "sh", "-c",
                             "pwd; echo $X"), "/data\n1 2\n", "-w and -e")
    expect_equal(daemon.exec("a", "sh", "-c", "cat; echo end", stdin=""), "end", "empty input")

    # A client's SIGTERM goes to the program; a client that dies takes the program with it.
    with Running(daemon, "exec", "a", "--", "sh", "-c",
                 "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done") as running:
        running.wait_text("ready")
        running.process.send_signal(signal.SIGTERM)
        expect_equal(running.process.wait(READ_S), 9, "exit code after SIGTERM to the client")
    with Running(daemon, "exec", "a", "--", "sh", "-c", "echo pid $$.; exec sleep 1000") as running:
        pid = running.wait_text(".").split()[1].rstrip(".")
        running.process.kill()
        running.process.wait()
    wait_for(lambda: code("kill", "-0", pid) != 0, "the program ends when its client has died")


def check_terminals(daemon):
    with Running(daemon, "exec", "-i", "-t", "a", "--", "sh", terminal=(33, 77)) as running:
        running.write("stty size; tty\n")
        running.wait_text("33 77")
        running.wait_text("/dev/pts/")
        fcntl.ioctl(running.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 88, 0, 0))
        os.kill(running.process.pid, signal.SIGWINCH)
        running.write("sleep 1; stty size\n")
        running.wait_text("44 88")
        running.write("exit 5\n")
        expect_equal(running.process.wait(READ_S), 5, "exit code of a shell on a terminal")
        expect_equal(termios.tcgetattr(running.slave), running.before, "the terminal's settings")
    with Running(daemon, "console", "a", terminal=(24, 80)) as running:
        running.wait_text("Ctrl-]")
        running.write("\n")
        running.write("echo con$((40+2))sole\n")
        running.wait_text("con42sole")
        running.write("\x1d")
        expect_equal(running.process.wait(READ_S), 0, "exit code of a console that was left")
        expect_equal(termios.tcgetattr(running.slave), running.before, "the terminal's settings")


def check_logs(daemon):
    expect("tiny: ready" in daemon.snow("logs", "a"), "logs have the boot")
    with Running(daemon, "logs", "-f", "a") as running:
        running.wait_text("tiny: ready")
        daemon.shell("a", "echo and then this >/dev/console")
        expect_equal(running.wait_text("and then this").count("tiny: ready"), 1,
                     "the boot's line in logs -f")
    expect("and then this" in daemon.snow("logs", "a"), "logs have what came later")


def check_copies(daemon, folder):
    big = folder / "big"
    big.write_bytes(os.urandom(20 << 20))
    big.chmod(0o640)
    digest = hashlib.sha256(big.read_bytes()).hexdigest()
    daemon.snow("cp", big, "a:/data/big")
    expect_equal(daemon.shell("a", "sha256sum </data/big; stat -c %a /data/big").split(),
                 [digest, "-", "640"], "20 MB in the guest")
    daemon.snow("cp", "a:/data/big", folder / "back")
    expect_equal(hashlib.sha256((folder / "back").read_bytes()).hexdigest(), digest, "and back")
    daemon.shell("a", "rm /data/big")
    daemon.snow("cp", "-", "a:/tmp/text", stdin="from standard input\n")
    expect_equal(daemon.snow("cp", "a:/tmp/text", "-"), "from standard input\n", "cp to -")
    daemon.snow("cp", "a:/tmp/text", folder)
    expect_equal((folder / "text").read_text(), "from standard input\n", "cp into a folder")

    daemon.snow_fails("cp", folder / "none", "a:/tmp/x", code=3, says="none")
    daemon.snow_fails("cp", "a:/tmp/none", folder / "x", code=3, says="/tmp/none")
    expect(not (folder / "x").exists(), "a copy that failed leaves no file")
    daemon.snow_fails("cp", "-", "a:/no/such/folder/x", says="/no/such/folder/x")
    daemon.snow_fails("cp", "a:/tmp", folder / "x", says="/tmp")
    daemon.snow_fails("cp", folder, "a:/tmp/x", code=2, says="-r")
    daemon.snow_fails("cp", "a:/tmp/x", "a:/tmp/y", code=2)
    daemon.snow_fails("cp", "a:relative", "-", code=2, says="relative")
    daemon.snow_fails("cp", "nobody:/tmp/x", "-", code=3, says="nobody")

    tree = folder / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below/file").write_text("in a folder\n")
    daemon.snow("cp", "-r", tree, "a:/tmp/tree")
    expect_equal(daemon.exec("a", "cat", "/tmp/tree/below/file"), "in a folder", "cp -r")
    daemon.snow("cp", "-r", "a:/tmp/tree", folder / "tree-back")
    expect_equal((folder / "tree-back/below/file").read_text(), "in a folder\n", "cp -r back")
    daemon.snow_fails("cp", "-r", "a:/tmp/none", folder / "x2", says="tar")


def check_family(daemon):
    with Running(daemon, "events", "-o", "json") as events:
        result = daemon.snow_result("fork", "a", "-n", 3, "-v", "-p", "K=V")
        expect_equal(result.returncode, 0, f"fork -v: {result.stderr}")
        places = [result.stderr.find(f"  {step} ") for step in
                  ("reserve", "prepare", "stop", "save", "load", "pause", "first_ready", "total")]
        expect(-1 not in places and places == sorted(places), f"steps in order: {result.stderr}")
        clones = daemon.snow("ps", "-o", "name").split()[1:]
        expect_equal(clones, ["a.1", "a.2", "a.3"], "names of clones")
        expect_equal(daemon.snow("tree").count("─ a."), 3, "branches of the tree")
        machine = daemon.inspect("a")
        for step in ("stop", "save", "bind", "load", "continue", "pause"):
            expect(step in machine["steps"], f"inspect shows the step {step}: {machine['steps']}")
        for image in machine["images"]:
            for key in ("kind", "size", "layers", "reads", "read_bytes", "resident_bytes",
                        "latency_p50_us"):
                expect(key in image, f"inspect shows {key} of an image: {image}")
        expect_equal(daemon.inspect("a.1")["parent"], machine["id"], "the parent of a clone")

        # Several at once; one that is not there stops nothing.
        expect_equal(daemon.snow("stop", "a.1", "a.2", "-t", "60").split(), ["a.1", "a.2"], "stop")
        result = daemon.snow_result("rm", "a.1", "nobody", "a.2")
        expect_equal((result.returncode, result.stdout.split()), (3, ["a.1", "a.2"]), "rm of three")
        expect("nobody" in result.stderr, f"what rm says of nobody: {result.stderr}")
        daemon.snow_fails("rm", "a.3", code=7, says="a.3")
        daemon.snow("rm", "--force", "a.3")
        expect_equal(daemon.snow("ps", "--all", "-o", "name").split(), ["a"], "in the end")
        text = events.wait_text('"removed"')
        kinds = [json.loads(line)["type"] for line in text.splitlines() if line.endswith("}")]
        for kind in ("starting", "running", "forked", "exited"):
            expect(kind in kinds, f"{kind} is among the events: {kinds}")


def main():
    with Daemon(images=["tiny"]) as daemon, \
            tempfile.TemporaryDirectory(prefix="snow-cli-test-") as folder:
        daemon.run_vm("tiny", name="a")
        check_formats(daemon)
        check_exec(daemon)
        check_terminals(daemon)
        check_logs(daemon)
        check_copies(daemon, pathlib.Path(folder))
        check_family(daemon)


if __name__ == "__main__":
    main()
