"""QEMU without Thundersnow, for comparison: the same tiny guest, saved with QEMU's own migration into
a file on tmpfs while it stands still, and restored from it into a new QEMU.

Time of the save: `migrate` to its completion. Of the restore: start of the new QEMU until its guest
runs. Both favour QEMU: no answer of the guest is waited for, and no disk is written.
"""
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

from snowtest import IMAGES, Failure, expect, wait_for

QEMU = "qemu-system-x86_64"
MEMORY = "1024M"
UNLIMITED = 1 << 40  # bytes per second
DEFAULT = 128 << 20  # QEMU's own
START_S = 120


class Qmp:
    """A QMP connection; blocking, one thread."""

    def __init__(self, path):
        self.socket = wait_for(lambda: self._connect(path), f"{path} listens", START_S, 0.002)
        self.lines = self.socket.makefile("r")
        self.lines.readline()
        self.execute("qmp_capabilities")

    @staticmethod
    def _connect(path):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            return None
        return connection

    def execute(self, command, **arguments):
        request = {"execute": command, "arguments": arguments}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = json.loads(self.lines.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise Failure(f"QMP {command}: {answer['error']['desc']}")

    def close(self):
        self.lines.close()
        self.socket.close()


def clock_rate():
    """The kernel's words for its clock: on a busy host a microvm hangs when it calibrates it itself
    (kernel_append in qemu/command_line.cc)."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        mhz = next(float(line.split(":")[1]) for line in file if line.startswith("cpu MHz"))
    return f"tsc=reliable tsc_early_khz={mhz * 1000:.0f}"


class PlainQemu:
    """The guest runs between enter and exit, with `touched_mib` in use."""

    def __init__(self, touched_mib):
        self.touched_mib = touched_mib
        self.image = IMAGES / "tiny"
        self.folder = None
        self.processes = []

    def __enter__(self):
        # On tmpfs, where there is one: the disk's speed is not what is compared.
        parent = "/dev/shm" if os.path.ismount("/dev/shm") else "/tmp"
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="snow-plain-", dir=parent))
        try:
            shutil.copyfile(self.image / "disk.raw", self.folder / "disk.raw")
            self.current, self.qmp = self._start("first")
            self._type(f"/opt/test/pattern serve {self.touched_mib} && echo tou''ched\n", "touched")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error):
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.folder)

    def _start(self, name, *options):
        info = json.loads((self.image / "image.json").read_text())
        path = self.folder / name
        process = subprocess.Popen(
            [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-accel",
             "tcg,thread=multi,tb-size=128", "-cpu", "max,la57=off", "-m", MEMORY, "-machine",
             "microvm,acpi=on,pit=on,pic=on,rtc=on,isa-serial=on,pcie=off,usb=off",
             "-kernel", self.image / info["kernel"], "-initrd", self.image / info["initrd"],
             "-append", f"{clock_rate()} {info['append']}",
             "-drive",
             f"file={self.folder / 'disk.raw'},format=raw,if=none,id=disk,file.locking=off",
             "-device", "virtio-blk-device,drive=disk", "-device", "virtio-serial-device",
             "-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net",
             "-chardev", f"socket,id=console,path={path}.console,server=on,wait=off",
             "-serial", "chardev:console", "-qmp", f"unix:{path}.qmp,server=on,wait=off", *options],
            stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process, Qmp(f"{path}.qmp")

    def _type(self, command, answer):
        """Types a command on the console, until it is answered."""
        console = socket.socket(socket.AF_UNIX)
        console.connect(str(self.folder / "first.console"))
        console.settimeout(1)
        seen, deadline, typed = "", time.monotonic() + START_S, False
        while answer not in seen:
            expect(time.monotonic() < deadline, f"plain QEMU: no '{answer}' on its console:\n{seen}")
            try:
                seen += console.recv(65536).decode(errors="replace")
            except TimeoutError:
                pass
            if not typed and "ready after" in seen and "#" in seen.partition("ready after")[2]:
                console.sendall(command.encode())
                typed = True
        console.close()

    def save(self, state, limited=False):
        """Milliseconds until the guest is in the file; it stands still until go_on()."""
        self.qmp.execute("migrate-set-parameters",
                         **{"max-bandwidth": DEFAULT if limited else UNLIMITED})
        self.qmp.execute("stop")
        start = time.monotonic()
        self.qmp.execute("migrate", uri=f"exec:cat > {state}")

        def saved():
            status = self.qmp.execute("query-migrate").get("status")
            expect(status not in ("failed", "cancelled"), "plain QEMU: its save failed")
            return status == "completed"
        wait_for(saved, "plain QEMU saves", START_S, 0.001)
        return (time.monotonic() - start) * 1000

    def go_on(self):
        self.qmp.execute("cont")

    def restore(self, states):
        """Milliseconds until all of the files run, each in a new QEMU; they end then."""
        start = time.monotonic()
        started = [self._start(f"restored{number}", "-incoming", f"exec:cat {state}")
                   for number, state in enumerate(states)]
        for _, qmp in started:
            wait_for(lambda qmp=qmp: qmp.execute("query-status")["status"] != "inmigrate",
                     "plain QEMU restores", START_S, 0.001)
            qmp.execute("cont")
        took = (time.monotonic() - start) * 1000
        for process, qmp in started:
            qmp.close()
            process.kill()
            process.wait()
            self.processes.remove(process)
        return took

    def save_and_restore(self, limited):
        """Milliseconds of the save and of the restore. The guest goes on in its old QEMU."""
        state = self.folder / "state"
        save = self.save(state, limited)
        restore = self.restore([state])
        state.unlink()
        self.go_on()
        return save, restore
