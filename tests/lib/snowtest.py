"""The harness of the system tests: a real snowd with its own folders, real guests, the real CLI.

    from snowtest import Daemon
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="a")
        assert daemon.exec("a", "cat", "/proc/version").startswith("Linux")

Leaving the block removes the VMs, stops daemon and keeper, and fails if a process, mount, socket or
file is left that the documentation does not name. Deadlines are generous: they find what hangs, and
measure nothing. Only the standard library is used.
"""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
from lab.supervisor import remove_cgroup  # noqa: E402

BUILD = ROOT / os.environ.get("SNOW_BUILD_DIR", "build/release")
IMAGES = ROOT / "build/images"
SNOWD = BUILD / "api/snowd"
SNOW = BUILD / "cli/snow"
KEEPER = BUILD / "keeper/snow-keeper"
START_S = 60
AGENT_S = 180
COMMAND_S = 240
EXIT_NOT_FOUND = 3  # of snow


class Failure(AssertionError):
    """A test's expectation that does not hold; the message says which."""


class CommandFailed(Failure):
    def __init__(self, command, result):
        self.code, self.out, self.err = result.returncode, result.stdout, result.stderr
        super().__init__(f"{' '.join(command)}: exit {self.code}\n{self.out}{self.err}".rstrip())


def expect(condition, message):
    """Fails with the message unless the condition holds."""
    if not condition:
        raise Failure(message)


def expect_equal(got, wanted, what):
    if got != wanted:
        raise Failure(f"{what}: got {got!r}, wanted {wanted!r}")


def wait_for(condition, what, timeout_s=60, interval_s=0.1):
    """Polls until the condition gives something true and returns it; fails naming `what`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f"not within {timeout_s} s: {what}")
        time.sleep(interval_s)


def is_tmpfs(path):
    with open("/proc/self/mounts", encoding="utf-8") as file:
        return any(line.split()[1:3] == [path, "tmpfs"] for line in file)


def processes_with(text):
    """{pid: command line} of living processes whose command line contains the text; not us."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                zombie = file.read().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue
        if text in command and not zombie:
            found[int(entry)] = command
    return found


def raise_exit(number, _frame):
    raise SystemExit(128 + number)


class Daemon:
    """One snowd with a state and a run folder of its own. Not thread-safe, but for snow()."""

    def __init__(self, images=("tiny",), settings=None, accelerator="auto"):
        self.images = list(images)
        self.settings = dict(settings or {})
        self.accelerator = accelerator
        self.process = None
        self.state_dir = self.run_dir = None

    # ---- life

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, raise_exit)
        for program in (SNOWD, SNOW, KEEPER):
            expect(program.exists(), f"{program} is not built: ./dev build makes it")
        # Short paths: a unix socket's name has at most 107 bytes. RAM files belong on a tmpfs.
        memory = next((path for path in ("/run", "/dev/shm") if is_tmpfs(path)), "/tmp")
        self.state_dir = pathlib.Path(tempfile.mkdtemp(prefix="snow-", dir="/tmp"))
        self.run_dir = pathlib.Path(tempfile.mkdtemp(prefix="snow-", dir=memory))
        for folder in (self.state_dir, self.run_dir):
            folder.chmod(0o755)
        try:
            self.start()
            for image in self.images:
                self.import_image(image)
        except BaseException:
            self._show_log()
            self._remove_all()
            raise
        return self

    def __exit__(self, kind, error, trace):
        if error is not None and kind is not SystemExit:
            self._show_log()
        left = []
        try:
            if error is None:
                left = self._end_in_order()
        finally:
            self._remove_all()
        if left:
            raise Failure("left behind:\n  " + "\n  ".join(left))
        return False

    def snowd_command(self):
        """The words that start snowd."""
        command = [str(SNOWD), "--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir)]
        for key, value in {"keeper": str(KEEPER), **self.settings}.items():
            command += ["--set", f"{key}={value}"]
        return command

    def start(self):
        """Starts snowd and waits until it answers."""
        command = self.snowd_command()
        with open(self.log_path, "ab") as log:
            self.process = self._popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=subprocess.STDOUT, start_new_session=True)

        def answers():
            code = self.process.poll()
            if code is not None:
                raise Failure(f"snowd ended with {code} instead of starting")
            return self.snow_result("info").returncode == 0
        wait_for(answers, "snowd answers", START_S)

    def stop(self):
        """Ends snowd in order; its VMs go on."""
        self._signal(signal.SIGTERM)
        expect_equal(self.process.wait(START_S), 0, "exit code of snowd after SIGTERM")

    def kill9(self):
        self._signal(signal.SIGKILL)
        self.process.wait(START_S)

    def restart(self):
        self.stop()
        self.start()

    # What differs for a daemon on a host of the lab (snowlab.py).

    def _popen(self, command, **options):
        return subprocess.Popen(command, **options)

    def _signal(self, number):
        self.process.send_signal(number)

    def _mounts(self):
        """Mount points in the run folder."""
        with open("/proc/self/mounts", encoding="utf-8") as file:
            return [line.split()[1] for line in file if str(self.run_dir) in line]

    def _own_vms(self):
        return self.vms("--all")

    def seen(self, path):
        """A file of the daemon's host as this process can open it."""
        return pathlib.Path(path)

    # ---- the command line

    @property
    def log_path(self):
        return self.state_dir.with_name(self.state_dir.name + ".log")

    @property
    def socket(self):
        return str(self.run_dir / "api.sock")

    def snow_command(self, *arguments):
        """The words of the command `snow ARGUMENTS`."""
        return [str(SNOW), "--socket", self.socket, *map(str, arguments)]

    def snow_result(self, *arguments, stdin=None, timeout_s=COMMAND_S):
        """`snow ARGUMENTS` as a CompletedProcess with text output."""
        return subprocess.run(self.snow_command(*arguments), input=stdin if stdin is not None else "",
                              text=True, timeout=timeout_s, capture_output=True, errors="replace",
                              check=False)

    def snow(self, *arguments, check=True, stdin=None, timeout_s=COMMAND_S):
        """What `snow ARGUMENTS` prints on stdout; fails if its exit code is not 0."""
        result = self.snow_result(*arguments, stdin=stdin, timeout_s=timeout_s)
        if check and result.returncode != 0:
            raise CommandFailed(["snow", *map(str, arguments)], result)
        return result.stdout

    def snow_json(self, *arguments, timeout_s=COMMAND_S):
        return json.loads(self.snow("-o", "json", *arguments, timeout_s=timeout_s))

    def snow_fails(self, *arguments, code=None, says=None):
        """Fails unless the command does; its stderr. `says`: words that must be in it."""
        result = self.snow_result(*arguments)
        expect(result.returncode != 0, f"snow {' '.join(map(str, arguments))} did not fail")
        if code is not None:
            expect_equal(result.returncode, code, f"exit code of snow {arguments}: {result.stderr}")
        if says is not None:
            expect(says in result.stderr, f"{says!r} is not in: {result.stderr}")
        return result.stderr

    # ---- images and VMs

    def import_image(self, image, name=None):
        """Imports one of build/images with what its image.json says."""
        folder = IMAGES / image
        expect((folder / "image.json").exists(), f"no image {folder}: guest-images/build {image}")
        info = json.loads((folder / "image.json").read_text())
        command = ["image", "import", folder / info["disk"], "--name", name or image,
                   "--memory", f"{info['memory'] >> 20}M", "--cpus", info["cpus"]]
        for key in ("kernel", "initrd"):
            if key in info:
                command += [f"--{key}", folder / info[key]]
        if "append" in info:
            command += [f"--append={info['append']}"]
        self.snow(*command)

    def run_vm(self, image="tiny", agent=True, **options):
        """`snow run`: run_vm("tiny", name="a", memory="1G", cpus=2, env=["K=V"]). Its name.

        agent: waits until the agent answers; otherwise the VM has just been started."""
        arguments = ["run", "--detach"]
        if self.accelerator != "auto":
            options.setdefault("accel", self.accelerator)
        for key, value in options.items():
            for one in value if isinstance(value, list) else [value]:
                arguments += [f"--{key.replace('_', '-')}={one}"]
        name = self.snow(*arguments, "-o", "name", image).split()[-1]
        if agent:
            self.wait_agent(name)
        return name

    def wait_agent(self, vm, timeout_s=AGENT_S):
        """Until the guest's agent runs commands; shows the console if it does not."""
        try:
            wait_for(lambda: self.snow_result("exec", vm, "--", "true").returncode == 0,
                     f"agent of {vm}", timeout_s, 0.5)
        except Failure as failure:
            raise Failure(f"{failure}\nconsole:\n{self.snow('logs', vm, check=False)[-2000:]}"
                          ) from None

    def exec(self, vm, *argv, check=True, stdin=None):
        """Runs a program in the guest: what it prints on stdout, without the last line end."""
        options = ["--interactive"] if stdin is not None else []
        return self.snow("exec", *options, vm, "--", *argv, check=check, stdin=stdin).rstrip("\n")

    def shell(self, vm, script, check=True):
        return self.exec(vm, "sh", "-c", script, check=check)

    def inspect(self, vm):
        found = self.snow_json("inspect", vm)
        return found[0] if isinstance(found, list) else found

    def vms(self, *options):
        return self.snow_json("ps", *options)

    def fork(self, vm, count, *options):
        """`snow fork`: the names of the clones."""
        return self.snow("fork", vm, "-n", count, *options, "-o", "name").split()

    # ---- the end

    def _remove_vms(self):
        """What is gone before its turn is no failure: it may end by itself, or by a host's join."""
        for vm in self._own_vms():
            result = self.snow_result("rm", "--force", vm["id"])
            if result.returncode not in (0, EXIT_NOT_FOUND):
                raise CommandFailed(["snow", "rm", "--force", vm["id"]], result)

    def _end_in_order(self):
        """Removes all VMs, ends the daemon; what is left then, as lines."""
        if self.process.poll() is not None:
            self.start()
        self._remove_vms()
        self.stop()
        mine = str(self.run_dir)
        left = []

        def nothing():
            left.clear()
            left.extend(f"process {pid} {command[:200]}"
                        for pid, command in processes_with(mine).items())
            left.extend(f"mount {point}" for point in self._mounts())
            # What docs name may stay in the run folder: nothing that is a socket, nor RAM. A mount
            # that nobody answers any more is not looked into.
            for path in [] if left else self.seen(self.run_dir).rglob("*"):
                if path.is_socket() or (path.is_file() and path.stat().st_size > 1 << 20):
                    left.append(f"file {path}")
            return not left
        try:
            wait_for(nothing, "nothing is left", 20)
        except Failure:
            pass
        return left

    def _kill_processes(self):
        """Kills the daemon and everything whose command line names our run folder."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            running = processes_with(str(self.run_dir))
            if not running:
                return
            for pid in running:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.1)

    def _remove_all(self):
        """For failures too: no process, mount or folder of ours stays."""
        self._kill_processes()
        for mount in reversed(self._mounts()):
            subprocess.run(["umount", "-l", mount], check=False)
        # vm/network_guard.cc names it so; there is one if a VM had a network.
        table = "thundersnow" + "".join(
            letter if letter.isascii() and letter.isalnum() else f"_{ord(letter):02x}"
            for letter in str(self.run_dir))
        subprocess.run(["nft", "delete", "table", "inet", table], check=False,
                       stderr=subprocess.DEVNULL)
        remove_cgroup(self.run_dir)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        shutil.rmtree(self.state_dir, ignore_errors=True)
        self.log_path.unlink(missing_ok=True)

    def _show_log(self):
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()[-60:]
        except OSError:
            return
        print("---- snowd's log", *lines, "----", sep="\n", file=sys.stderr, flush=True)
