#!/usr/bin/env python3
"""A VM's life through the command line: run, ps, exec, pause, resume, stop, rm."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402


def states(daemon):
    return {vm["name"]: vm["state"] for vm in daemon.vms("--all")}


def main():
    with Daemon(images=["tiny"]) as daemon:
        expect_equal([image["name"] for image in daemon.snow_json("image", "ls")], ["tiny"],
                     "images")
        daemon.run_vm("tiny", name="a", cpus=2, env=["COLOUR=blue"])
        expect_equal(states(daemon), {"a": "running"}, "after run")
        expect_equal(daemon.exec("a", "nproc"), "2", "vCPUs in the guest")

        # The guest's exit code, output and input pass through exec.
        result = daemon.snow_result("exec", "a", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
        expect_equal((result.returncode, result.stdout, result.stderr), (7, "out\n", "err\n"),
                     "exec passes code and both outputs")
        expect_equal(daemon.exec("a", "wc", "-c", stdin="twelve bytes"), "12", "exec's input")
        daemon.snow_fails("run", "tiny", "--name", "a", "--detach", says="a")

        # A paused guest's clock-driven counter stands still.
        daemon.shell("a", "(while :; do echo >>/tmp/beats; sleep 0.1; done) >/dev/null 2>&1 &")
        wait_for(lambda: int(daemon.shell("a", "wc -l </tmp/beats")) > 2, "the counter runs")
        daemon.snow("pause", "a")
        expect_equal(states(daemon), {"a": "paused"}, "after pause")
        daemon.snow("resume", "a")
        expect_equal(states(daemon), {"a": "running"}, "after resume")
        before = int(daemon.shell("a", "wc -l </tmp/beats"))
        wait_for(lambda: int(daemon.shell("a", "wc -l </tmp/beats")) > before,
                 "the counter goes on after resume")

        # Orderly: the guest is asked, so its disk was unmounted; then its record can go.
        daemon.shell("a", "echo kept >/data/file")
        daemon.snow("stop", "a", "--timeout", "60")
        expect_equal(states(daemon), {"a": "exited"}, "after stop")
        expect_equal(daemon.inspect("a")["exit"]["how"], "shutdown", "how it ended")
        expect_equal(daemon.vms(), [], "ps without --all")
        expect("tiny: ready" in daemon.snow("logs", "a"), "the console's log outlives the VM")
        daemon.snow("rm", "a")
        expect_equal(states(daemon), {}, "after rm")
        daemon.snow_fails("inspect", "a", says="a")


if __name__ == "__main__":
    main()
