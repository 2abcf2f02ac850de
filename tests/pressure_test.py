#!/usr/bin/env python3
# timeout: 600 s
"""32 clones at once: all run, all answer, each knows its number. Their memory is printed, not judged
(`./dev bench fork` does that)."""
import concurrent.futures
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect_equal  # noqa: E402

CLONES = 32


def pss_mib(pid):
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def main():
    with Daemon(images=["tiny"]) as daemon:
        daemon.run_vm("tiny", name="a")
        daemon.shell("a", "echo inherited >/tmp/word")
        clones = daemon.snow_json("fork", "a", "-n", CLONES)["clones"]
        expect_equal(len(clones), CLONES, "clones")
        expect_equal({clone["state"] for clone in clones}, {"running"}, "states")

        def ask(clone):
            return daemon.shell(clone["id"], "cat /tmp/word; hostname")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, clones))
        for clone, answer in zip(clones, answers):
            expect_equal(answer.split(), ["inherited", clone["name"].replace(".", "-")],
                         f"what {clone['name']} says")
        sizes = sorted(pss_mib(daemon.inspect(clone["id"])["pid"]) for clone in clones)
        print(f"proportional memory of a clone: median {sizes[len(sizes) // 2]:.1f} MiB, "
              f"most {sizes[-1]:.1f} MiB")
        daemon.snow("rm", "--force", *[clone["id"] for clone in clones])
        expect_equal(daemon.shell("a", "cat /tmp/word"), "inherited", "the parent afterwards")


if __name__ == "__main__":
    main()
