#!/usr/bin/env python3
"""A member of the cluster that serves pages wrongly: no wrong byte reaches a guest.

h1's snowd is stopped, and a program with h1's certificate (tests/rogue) is in its place. It fetches
the images of a fork from their origin, so the origin sends the clones on h2 and h3 there for the
pages that they have not asked for yet. The rogue answers with wrong bytes, not at all, or breaks off;
every clone verifies all of its memory nevertheless. The rogue's count proves that it was asked.
"""
# timeout: 300 s
import json
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowlab import Lab, machines  # noqa: E402
from snowtest import BUILD, expect, expect_equal, wait_for  # noqa: E402

ROGUE = BUILD / "tests/rogue/rogue"
PATTERN = "/opt/test/pattern"
MIB = 8
MODES = ("flip", "zeros", "other", "garbage", "broken", "silent")
# No page comes unless a clone wants it, and each from whom the origin says.
SETTINGS = {"multicast": "false", "fill_after_seconds": 3600}


def identity(host):
    return json.loads((host.state_dir / "cluster/cluster.json").read_text())["host"]


def shown(host):
    found = host.snow_json("host", "show", host.name)
    return found[0] if isinstance(found, list) else found


class Rogue:
    """The program in a host's place."""

    def __init__(self, host, origin):
        self.host = host
        words = [ROGUE, host.state_dir, identity(host), f"{host.address}:7171", identity(origin),
                 f"{origin.address}:7171"]
        self.process = host.popen(words, machines.SHARED, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def count(self):
        answer = self.ask("count")
        expect(answer.startswith("count "), f"rogue: {answer}")
        return int(answer.split()[1])

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        expect_equal(self.process.wait(60), 0, "exit code of the rogue")


def offers(host):
    return {offer["id"]: offer["pages"] for offer in shown(host)["exchange"]["offers"]}


def layer_counts(hosts, images):
    """What the hosts' layers of these images have met."""
    total = {"wrong_answers": 0, "failures": 0, "hedges": 0, "redirects": 0}
    for host in hosts:
        for layer in shown(host)["exchange"]["layers"]:
            if layer["id"] in images:
                for key in total:
                    total[key] += layer[key]
    return total


def served(origin, hosts, rogue, mode):
    known = offers(origin)
    clones = origin.daemon.fork("parent", 2, "--hosts", ",".join(host.name for host in hosts))
    images = {image: pages for image, pages in offers(origin).items() if image not in known}
    expect(images, "the fork has images of its own")
    expect_equal(rogue.ask("mode", mode), f"mode {mode}", "rogue")
    fetched = [rogue.ask("fetch", image, pages) for image, pages in images.items()]
    expect(all(answer.startswith("fetched ") for answer in fetched), f"rogue: {fetched}")
    before = rogue.count()
    for clone in clones:
        answer = origin.daemon.exec(clone, PATTERN, "verify")
        expect(answer.startswith("OK "), f"{mode}: {clone}: {answer}")
    asked = rogue.count()
    met = layer_counts(hosts, images)
    print(f"{mode}: {fetched}; the rogue was asked {before} + {asked - before} times; {met}",
          flush=True)
    expect(asked > 0, f"{mode}: the rogue was asked")
    wrong = mode in ("flip", "zeros", "other", "garbage")
    noticed = met["wrong_answers"] if wrong else met["failures"] + met["hedges"]
    expect(noticed > 0, f"{mode}: it was noticed: {met}")
    for clone in clones:
        origin.snow("rm", "--force", clone)


def main():
    with Lab(hosts=4, settings=SETTINGS) as lab:
        lab.make_cluster()
        origin, place, *hosts = lab.hosts
        place.daemon.stop()
        rogue = Rogue(place, origin)
        origin.daemon.run_vm("tiny", name="parent")
        origin.daemon.exec("parent", PATTERN, "serve", MIB)
        for mode in MODES:
            served(origin, hosts, rogue, mode)
        rogue.end()
        place.daemon.start()
        wait_for(lambda: origin.snow_json("host", "show", place.name)["state"] == "alive",
                 "the host is an honest member again")
        (clone,) = origin.daemon.fork("parent", 1, "--hosts", place.name)
        answer = origin.daemon.exec(clone, PATTERN, "verify")
        expect(answer.startswith("OK "), f"on the host that was a rogue: {answer}")


if __name__ == "__main__":
    main()
