#!/usr/bin/env python3
# timeout: 600 s
"""A database that is being written when the fork comes is sound in every clone.

A program in the guest commits transactions without a pause. After each of two forks every machine's
database passes SQLite's own check and its sums agree, nothing that was committed before the fork is
missing, and the writer goes on in all of them.
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
from snowtest import Daemon, expect, expect_equal, wait_for  # noqa: E402

WRITER = """
import os, sqlite3, time
database = sqlite3.connect("/root/test.db", isolation_level=None)
database.execute("PRAGMA synchronous = FULL")
database.execute("CREATE TABLE entry (number INTEGER PRIMARY KEY, text BLOB)")
database.execute("CREATE INDEX by_text ON entry (text)")
database.execute("CREATE TABLE total (numbers INTEGER)")
database.execute("INSERT INTO total VALUES (0)")
number = 0
while True:
    number += 1
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO entry VALUES (?, ?)", (number, os.urandom(200)))
    database.execute("UPDATE total SET numbers = numbers + ?", (number,))
    database.execute("COMMIT")
    time.sleep(0.01)  # four machines share the host in the end
"""
READER = """
import sqlite3
database = sqlite3.connect("/root/test.db", timeout=120)
database.execute("BEGIN")
count, numbers = database.execute("SELECT count(*), sum(number) FROM entry").fetchone()
(total,) = database.execute("SELECT numbers FROM total").fetchone()
(sound,) = database.execute("PRAGMA integrity_check").fetchone()
print(count, sound if numbers == total else f"numbers {numbers}, but total {total}")
"""


def count(daemon, vm):
    """The number of entries; fails if the database is not sound."""
    number, sound = daemon.exec(vm, "python3", "-c", READER).split(" ", 1)
    expect_equal(sound, "ok", f"integrity_check in {vm}")
    return int(number)


def main():
    with Daemon(images=["debian"]) as daemon:
        daemon.run_vm("debian", name="db")
        daemon.exec("db", "sh", "-c", 'cat >/root/writer.py', stdin=WRITER)
        daemon.shell("db", "setsid python3 /root/writer.py >/root/writer.log 2>&1 </dev/null &")
        wait_for(lambda: daemon.shell("db", "test -s /root/test.db && echo yes", check=False),
                 "the writer has begun")
        wait_for(lambda: count(daemon, "db") >= 20, "twenty commits")
        family = ["db"]
        for _ in range(2):
            before = count(daemon, family[-1])
            clones = daemon.fork(family[-1], 2 if len(family) == 1 else 1)
            for vm in [family[-1], *clones]:
                now = count(daemon, vm)
                expect(now >= before, f"{vm}: {now} entries after the fork, {before} before it")
            family += clones
        for vm in family:
            before = count(daemon, vm)
            wait_for(lambda vm=vm, before=before: count(daemon, vm) > before,
                     f"the writer goes on in {vm}: {daemon.shell(vm, 'cat /root/writer.log')}")


if __name__ == "__main__":
    main()
