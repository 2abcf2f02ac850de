#!/usr/bin/env python3
"""What clones on other hosts still fetch is not removed, whatever is removed on the host that has it.

A VM of a snapshot, and one of an image, fork to another host, whose clones fetch hardly anything.
Then their parents are removed. The snapshot and the image cannot be, with an error that names the
host that needs them; the daemon is started again, and every page of the clones verifies. Once the clones
have everything, or have ended, the snapshot and the image go.
"""
# timeout: 240 s
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowlab import Lab  # noqa: E402
from snowtest import expect, wait_for  # noqa: E402

PATTERN = "/opt/test/pattern"
MIB = 8
WRONG_STATE = 7  # docs/errors.md
SETTINGS = {"fill_after_seconds": 3600, "multicast": "false"}  # only what is read is fetched


def verify(host, vm):
    answer = host.daemon.exec(vm, PATTERN, "verify")
    expect(answer.startswith("OK "), f"{vm}: {answer}")


def fork_to(host, parent, there):
    (clone,) = host.daemon.fork(parent, 1, "--hosts", there.name)
    return clone


def refused(host, kind, name, there):
    says = host.snow_fails(kind, "rm", name, code=WRONG_STATE, says=there.name)
    print(says.strip(), flush=True)


def let_go(host, kind, name):
    """The other host says soon that it needs nothing any more."""
    wait_for(lambda: host.daemon.snow_result(kind, "rm", name).returncode == 0,
             f"{kind} {name} can be removed")


def main():
    with Lab(hosts=2, settings=SETTINGS) as lab:
        lab.make_cluster()
        first, second = lab.hosts
        first.daemon.run_vm("tiny", name="a")
        first.daemon.exec("a", PATTERN, "serve", MIB)
        first.snow("snapshot", "a", "kept")
        first.snow("run", "--from", "kept", "--name", "b")
        of_snapshot, of_image = fork_to(first, "b", second), fork_to(first, "a", second)
        first.snow("rm", "--force", "a", "b")
        for _ in range(2):
            refused(first, "snapshot", "kept", second)
            refused(first, "image", "tiny", second)
            first.daemon.restart()
        for clone in (of_snapshot, of_image):
            verify(second, clone)
        second.snow("vm", "detach", of_snapshot)
        let_go(first, "snapshot", "kept")
        verify(second, of_snapshot)
        refused(first, "image", "tiny", second)
        second.daemon.shell(of_image, "dd if=/dev/vda of=/dev/null bs=1M")
        second.snow("rm", "--force", of_image)
        let_go(first, "image", "tiny")


if __name__ == "__main__":
    main()
