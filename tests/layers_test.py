#!/usr/bin/env python3
# timeout: 600 s
"""Layers do not pile up: however often a VM forks, its images stay a small stack, memory and disk are
right, and the files of layers that nobody needs go. A chain six deep is as good as one."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

PATTERN = "/opt/test/pattern"
FORKS = 60
MOST_LAYERS = 12  # eight are kept; those of forks that are not settled yet come on top


def layers(daemon, vm):
    return {image["kind"]: image["layers"] for image in daemon.inspect(vm)["images"]}


def verify(daemon, vm):
    answer = daemon.exec(vm, PATTERN, "verify")
    expect(answer.startswith("OK "), f"{vm}: {answer}")


def layer_files(daemon):
    return sorted(str(path) for folder in (daemon.run_dir / "ram", daemon.state_dir / "disks")
                  for path in folder.glob("*") if path.is_file())


def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="a")
        daemon.exec("a", PATTERN, "serve", 8)
        for number in range(1, FORKS + 1):
            daemon.shell("a", f"echo {number} >>/data/log; {PATTERN} own {number} >/dev/null")
            (clone,) = daemon.fork("a", 1)
            if number % 20 == 0:
                verify(daemon, clone)
                expect_equal(daemon.shell(clone, "wc -l </data/log"), str(number),
                             f"lines on the disk of {clone}")
            daemon.snow("rm", "--force", clone)
        wait_for(lambda: daemon.inspect("a")["frozen"]["settled"], "the last fork is settled")
        for kind, count in layers(daemon, "a").items():
            expect(count <= MOST_LAYERS, f"{count} layers of {kind} after {FORKS} forks")
        verify(daemon, "a")
        # One machine, so few files: its layers, its overlay.
        wait_for(lambda: len(layer_files(daemon)) <= 2 * MOST_LAYERS + 2,
                 f"layers that nobody needs are gone: {layer_files(daemon)}")

        above = "a"
        chain = [above]
        for depth in range(1, 7):
            (above,) = daemon.fork(above, 1)
            chain.append(above)
            daemon.shell(above, f"echo depth {depth} >>/data/log")
            daemon.exec(above, PATTERN, "own", 100 + depth)
        for depth, vm in enumerate(chain):
            verify(daemon, vm)
            expect_equal(daemon.shell(vm, "wc -l </data/log"), str(FORKS + depth),
                         f"lines on the disk of {vm}")
            expect_equal(daemon.inspect(vm)["generation"], depth, f"generation of {vm}")
        # Those in the middle go; the last does not mind.
        daemon.snow("rm", "--force", *chain[:-1])
        verify(daemon, above)
        expect_equal(daemon.shell(above, "echo 3 >/proc/sys/vm/drop_caches; wc -l </data/log"),
                     str(FORKS + 6), "lines on the disk of the last of the chain")
        daemon.snow("rm", "--force", above)
        wait_for(lambda: not layer_files(daemon),
                 f"with the last VM its layers go: {layer_files(daemon)}")


if __name__ == "__main__":
    main()
