#!/usr/bin/env python3
"""Who gets into a cluster, who does not, and what is left of an attempt: nothing.

Join tokens that are wrong, over or used; `snow cluster init` on what cannot work; the certificate of
another cluster, protocol versions from the future, a host that was removed. All of it is refused with
a clear error and its documented exit code, and whoever was refused can go on as before. Of a removed
host nothing is left with the others, and it can join again, with the VMs that it has.
"""
# timeout: 300 s
import json
import pathlib
import shutil
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowlab import Lab, machines  # noqa: E402
from snowtest import expect, expect_equal, wait_for  # noqa: E402

CLIENT = pathlib.Path(__file__).resolve().parent / "lib/peerclient.py"
EXISTS, INVALID, WRONG_STATE, DENIED, UNAVAILABLE, HOST_FAILED, CORRUPT = 4, 5, 7, 11, 12, 13, 14
NOT_FOUND = 3
NOBODY = "198.51.100.7"  # no host of the lab has it
HELLO, ERROR = 1, 2
RANGE = """
import base64, json, sys, urllib.request
url, prefix = sys.argv[1:]
begin, end = (base64.b64encode(key.encode()).decode()
              for key in (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)))
asked = json.dumps({"key": begin, "range_end": end}).encode()
with urllib.request.urlopen(f"{url}/v3/kv/range", asked) as answer:
    found = json.load(answer).get("kvs", [])
print(json.dumps([json.loads(base64.b64decode(one["value"])) for one in found]))
"""


def alone(host):
    """Nothing is left of an attempt: no cluster, no folder, and a daemon that works."""
    expect(not (host.state_dir / "cluster").exists(), f"{host.name}: cluster/ is there")
    expect_equal(host.snow_json("info")["cluster"], None, f"{host.name}'s cluster")
    expect_equal(host.snow_json("ps", "-a"), [], f"{host.name}'s VMs")


def refused(host, *command, code, says, stdin=None):
    """The command fails so, and changes nothing. `says`: a word that the message must have."""
    result = host.daemon.snow_result(*command, stdin=stdin)
    text = f"{host.name}: snow {' '.join(map(str, command[:2]))}: {result.stderr.strip()}"
    print(text, flush=True)
    expect_equal(result.returncode, code, f"exit code of {text}")
    expect(says in result.stderr, f"{says!r} is not in {text}")


def init(host, etcd, name, address=None):
    return ("cluster", "init", "--name", name, "--host-name", host.name, "--address",
            address or host.address, "--etcd", etcd)


def join(host, address=None):
    return ("cluster", "join", "--token", "-", "--host-name", host.name, "--address",
            address or host.address)


def token_of(host, *options):
    return host.snow("cluster", "token", *options).strip()


def bad_inits(lab, host):
    url = lab.etcd.url
    refused(host, *init(host, url, "a", NOBODY), code=HOST_FAILED, says=NOBODY)
    alone(host)
    refused(host, *init(host, url, "a", "nonsense"), code=INVALID, says="nonsense")
    alone(host)
    refused(host, *init(host, f"http://{lab.hosts[1].address}:2379", "a"), code=UNAVAILABLE,
            says="2379")
    alone(host)
    refused(host, "cluster", "token", code=WRONG_STATE, says="cluster")
    host.snow(*init(host, url, "a"))
    refused(host, *init(host, url, "b"), code=EXISTS, says="'a'")
    host.daemon.restart()
    expect_equal(host.snow_json("info")["cluster"]["name"], "a", "cluster after a restart")


def bad_joins(lab, first, host):
    """Wrong tokens; then a good one, which is good once."""
    good = token_of(first)
    over = token_of(first, "--ttl", "1")
    middle = len(good) // 2
    typing_error = good[:middle] + ("a" if good[middle] != "a" else "b") + good[middle + 1:]
    for token in ("nonsense", typing_error, good[:-9]):
        refused(host, *join(host), stdin=token, code=DENIED, says="token")
        alone(host)
    time.sleep(2)
    refused(host, *join(host), stdin=over, code=DENIED, says="is over")
    alone(host)
    # What is wrong with the new host is found before the token is used up.
    refused(host, *join(host, NOBODY), stdin=good, code=HOST_FAILED, says=NOBODY)
    alone(host)
    taken = [word if word != host.name else first.name for word in join(host)]
    refused(host, *taken, stdin=good, code=EXISTS, says=first.name)
    alone(host)
    host.snow(*join(host), stdin=good)
    refused(host, *join(host), stdin=good, code=EXISTS, says="already")
    refused(lab.hosts[2], *join(lab.hosts[2]), stdin=good, code=DENIED, says="used already")
    alone(lab.hosts[2])
    names = sorted((one["name"], one["state"]) for one in first.snow_json("host", "ls"))
    expect_equal(names, [(first.name, "alive"), (host.name, "alive")], "members after all that")


def authority_does_not_answer(first, host):
    """The token that was not used."""
    token = token_of(first)
    first.daemon.stop()
    refused(host, *join(host), stdin=token, code=UNAVAILABLE, says=first.address)
    alone(host)
    first.daemon.start()
    return token


def directory_does_not_answer(lab, first, host, token):
    """Not to the new host, but to the authority, which makes it a member."""
    lab.partition(host, [lab.etcd])
    refused(host, *join(host), stdin=token, code=UNAVAILABLE, says="has joined")
    refused(host, *join(host), stdin=token, code=EXISTS, says="already")
    expect_equal(first.snow_json("host", "show", host.name)["state"], "gone", "without a lease")
    refused(host, "run", "-d", "tiny", code=UNAVAILABLE, says="fenced")
    lab.heal(host)
    wait_for(lambda: first.snow_json("host", "show", host.name)["state"] == "alive",
             "it goes on by itself")


def say_hello(where, to, wanted):
    result = where.run([sys.executable, "-S", CLIENT, f"{to.address}:7171", json.dumps(wanted)],
                       spaces=machines.NET)
    return json.loads(result.stdout)


def identity(host):
    folder = host.state_dir / "cluster"
    return {"host": json.loads((folder / "cluster.json").read_text())["host"],
            "cert": str(folder / "host.pem"), "key": str(folder / "host-key.pem")}


def strangers(first, member, other):
    """`other` is of another cluster."""
    def answer(**wanted):
        return say_hello(member, first, {"version": 1, "service": "calls", **wanted})
    ours, theirs = identity(member), identity(other)
    expect_equal(answer(**ours)["type"], HELLO, "answer to a member")
    expect("alert" in answer(**theirs), "another cluster's certificate fails in the handshake")
    expect("alert" in answer(**{**theirs, "host": ours["host"]}), "the same with our host's id")
    for wanted, code in (({**ours, "host": theirs["host"]}, DENIED),
                         ({**ours, "version": 2}, WRONG_STATE),
                         ({**ours, "version": 65535}, WRONG_STATE),
                         ({**ours, "service": "future"}, NOT_FOUND),
                         ({"host": ours["host"]}, CORRUPT),  # no TLS at all
                         ({"anonymous": True, "host": ""}, DENIED),
                         ({"anonymous": True, "host": "", "service": "pages"}, DENIED)):
        got = answer(**wanted)
        expect_equal((got.get("type"), got.get("code")), (ERROR, code), f"{wanted}: {got}")
        if code == WRONG_STATE:
            expect(str(wanted["version"]) in got["text"] and "1" in got["text"],
                   f"both versions are named: {got}")
    expect_equal(answer(**ours)["type"], HELLO, "answer to a member after the strangers")


def stolen_files(first, member, other):
    """A host that shows another cluster's files is no member here, whatever it says it is."""
    folder = member.state_dir / "cluster"
    member.daemon.stop()
    shutil.copytree(folder, f"{folder}.own")
    for name in ("ca.pem", "host.pem", "host-key.pem"):
        shutil.copy(other.state_dir / "cluster" / name, folder / name)
    config = json.loads((folder / "cluster.json").read_text())
    config["host"] = identity(other)["host"]
    (folder / "cluster.json").write_text(json.dumps(config))
    # It comes to the right directory, which knows no such member.
    result = member.run(member.daemon.snowd_command(), check=False)
    expect(result.returncode == DENIED and "not a member" in result.stdout + result.stderr,
           f"snowd with another cluster's files: {result}")
    shutil.rmtree(folder)
    pathlib.Path(f"{folder}.own").rename(folder)
    member.daemon.start()
    wait_for(lambda: all(one["state"] == "alive" for one in first.snow_json("host", "ls")),
             "the member is back")


def shown(first, members):
    """`snow host ls` and `snow host show`, as text and as JSON."""
    table = first.snow("host", "ls")
    for host in members:
        expect(host.name in table and host.address in table, f"{host.name} in:\n{table}")
    expect(f"{first.name} (this one)" in table, f"this host in:\n{table}")
    for host in members:
        one = first.snow_json("host", "show", host.name)
        one = one[0] if isinstance(one, list) else one
        expect_equal((one["name"], one["state"], one["self"], one["owed"]),
                     (host.name, "alive", host is first, 0), f"host show {host.name}")
        expect(one["capacity"]["memory"] > 0, f"capacity of {one}")
    refused(first, "host", "show", "nobody", code=NOT_FOUND, says="nobody")


def places(host, clones):
    return {vm["host"] for vm in host.snow_json("ps") if vm["name"] in clones}


def drained(first, second, third):
    first.daemon.run_vm("tiny", name="parent")
    first.snow("host", "drain", third.name)
    wait_for(lambda: first.snow_json("host", "show", third.name)["state"] == "drained", "drained")
    expect_equal(places(first, first.daemon.fork("parent", 4, "--spread")),
                 {first.name, second.name}, "hosts of clones while one is drained")
    first.snow("host", "drain", "--undo", third.name)
    expect_equal(places(first, first.daemon.fork("parent", 3, "--spread")),
                 {first.name, second.name, third.name}, "hosts of clones when it is not")


def owners(lab, host):
    """The ids of the hosts that have VMs on record in etcd."""
    cluster = json.loads((host.state_dir / "cluster/cluster.json").read_text())["cluster"]
    records = lab.etcd.run([sys.executable, "-S", "-c", RANGE, lab.etcd.url, f"/snow/{cluster}/vm/"],
                           spaces=machines.NET).stdout
    return {one["host"] for one in json.loads(records)}


def held(host):
    """How many images it keeps for others."""
    return host.snow_json("info")["cluster"]["held"]


def removed(lab, first, second, third):
    """Nobody talks with a removed host or keeps anything for it, and it starts nothing."""
    refused(first, "host", "rm", third.name, code=WRONG_STATE, says="alive")
    refused(first, "host", "rm", "-f", first.name, code=WRONG_STATE, says="this one")
    third.daemon.run_vm("tiny", name="own")
    second.daemon.run_vm("tiny", name="elder")
    forked = second.snow_json("fork", "elder", "-n", 1, "--hosts", third.name)
    expect(held(second) > 0, "the clone's host holds images")
    gone = identity(third)
    expect(gone["host"] in owners(lab, first), "VMs on record before it is removed")
    first.snow("host", "rm", "-f", third.name)
    expect(gone["host"] not in owners(lab, first), "VMs of a removed host on record")
    (end,) = second.snow_json("join", forked["ticket"])["clones"]
    expect_equal(end["how"], "lost", "end of a clone on a removed host")
    wait_for(lambda: held(second) == 0, "nothing is kept for a removed host")
    for host in (first, second):
        names = [one["name"] for one in host.snow_json("host", "ls")]
        expect_equal(sorted(names), [first.name, second.name], f"members as {host.name} sees them")
        answer = say_hello(third, host, {"version": 1, "service": "calls", **gone})
        expect_equal((answer.get("type"), answer.get("code")), (ERROR, DENIED), f"{answer}")
    wait_for(lambda: third.snow_json("info")["cluster"]["lease_left_ms"] <= 0, "it is fenced")
    refused(third, "run", "-d", "tiny", code=UNAVAILABLE, says="fenced")
    return forked["clones"][0]["id"]


def joined_again(lab, first, third, clone):
    """As the removed host's log says. Its own VM goes on; the clone, which counts as lost, does not."""
    third.daemon.stop()
    shutil.rmtree(third.state_dir / "cluster")
    third.daemon.start()
    third.snow(*join(third), stdin=token_of(first))
    wait_for(lambda: [one["state"] for one in first.snow_json("host", "ls")] == ["alive"] * 3,
             "all hosts are alive")
    expect_equal([(vm["host"], vm["state"]) for vm in first.snow_json("ps") if vm["name"] == "own"],
                 [(third.name, "running")], "the VM of the host that joined again")
    expect_equal([vm["id"] for vm in first.snow_json("ps") if vm["id"] == clone], [], "lost clones")
    first.daemon.exec("own", "true")
    expect_equal(places(first, third.daemon.fork("own", 2, "--hosts", f"{first.name},{third.name}")),
                 {first.name, third.name}, "hosts of its clones")
    expect(identity(third)["host"] in owners(lab, first), "its VMs are on record")


def main():
    with Lab(hosts=4, settings={"fill_after_seconds": 3600}) as lab:
        first, second, third, other = lab.hosts
        bad_inits(lab, first)
        bad_joins(lab, first, second)
        token = authority_does_not_answer(first, third)
        directory_does_not_answer(lab, first, third, token)
        other.snow(*init(other, lab.etcd.url, "other"))
        strangers(first, second, other)
        stolen_files(first, third, other)
        shown(first, [first, second, third])
        drained(first, second, third)
        clone = removed(lab, first, second, third)
        joined_again(lab, first, third, clone)


if __name__ == "__main__":
    main()
