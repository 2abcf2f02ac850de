"""The guest's part of the demo (demo/run copies it into a Debian VM): a spelling index.

Builds an index of Debian's word list, in memory: each word under all that is left of it when one
letter is taken out. Then eight clones of this machine look up every word of Python's own library
that the list does not have, each a part, in the index that they inherited. Nothing is sent to
them: the machine was copied while this program ran. Tells what it does as lines of JSON.

SNOW_DEMO_CLONES and SNOW_DEMO_PLACE=spread: how many clones, and that they go to all hosts of the
cluster. `index.py EVENT` ends when it has told of that event, e.g. `joined`.
"""
import collections
import gc
import json
import os
import pathlib
import re
import sys
import time

import snow

WORDS = "/usr/share/dict/words"
TEXTS = "/usr/lib/python3*/*.py"
CLONES = int(os.environ.get("SNOW_DEMO_CLONES", "8"))
PLACE = {"spread": True} if os.environ.get("SNOW_DEMO_PLACE") == "spread" else {}
SHORTEST = 7


def tell(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)
    if [event] == sys.argv[1:]:
        sys.exit()


def without_one(word):
    """All that is left of the word when one letter is taken out."""
    return {word[:i] + word[i + 1:] for i in range(len(word))}


def build_index():
    text = pathlib.Path(WORDS).read_text(encoding="utf-8")
    known = {word for word in text.lower().split() if word.isascii() and word.isalpha()}
    index = collections.defaultdict(str)
    for word in known:
        if len(word) >= SHORTEST:
            for rest in without_one(word):
                index[rest] += word + " "
    return known, dict(index)


def words_in_question(known):
    """Words in the prose of Python's library that the list does not have, in order."""
    found = set()
    prose = re.compile(rf"(?<= )[a-z]{{{SHORTEST},}}(?=[ ,.]|$)", re.MULTILINE)
    for path in sorted(pathlib.Path("/").glob(TEXTS.lstrip("/"))):
        found.update(prose.findall(path.read_text(encoding="utf-8", errors="replace")))
    return sorted(found - known)


def suggest(word):
    """Known words that one letter, put in, taken out or changed, makes of this one; the same for
    two letters if there is none."""
    near = set(INDEX.get(word, "").split())
    for rest in without_one(word):
        if rest in KNOWN:
            near.add(rest)
        near.update(other for other in INDEX.get(rest, "").split() if len(other) == len(word))
    if not near:
        for rest in without_one(word):
            for shorter in without_one(rest):
                near.update(INDEX.get(shorter, "").split())
        near = {other for other in near if abs(len(other) - len(word)) <= 1}
    return sorted(near)


def line_of_clones(depth):
    """Clones itself, the clone does the same, and so on; what each says, the first clone's first."""
    with snow.ticket(1) as ticket:
        if ticket.clone():
            below = line_of_clones(depth - 1) if depth > 1 else []
            me = snow.info()
            # The youngest does all the work once more.
            same = depth > 1 or [suggest(word) for word in QUESTIONS] == ANSWERS
            snow.exit([{"name": me.name, "generation": me.generation, "same": same}, *below])
        return ticket.join()[0].value


start = time.monotonic()
KNOWN, INDEX = build_index()
QUESTIONS = words_in_question(KNOWN)
gc.collect()
gc.freeze()  # the collector's marks would make every page of the index each clone's own
tell("indexed", seconds=time.monotonic() - start, words=len(KNOWN), keys=len(INDEX),
     questions=len(QUESTIONS))

start = time.monotonic()
ANSWERS = snow.map(suggest, QUESTIONS, n=CLONES, **PLACE)
tell("joined", seconds=time.monotonic() - start, answered=len(ANSWERS),
     examples={word: near[0] for word, near in zip(QUESTIONS, ANSWERS)  # a letter left out
               if len(near) == 1 and len(near[0]) == len(word) + 1 and not near[0].endswith("s")})

start = time.monotonic()
alone = [suggest(word) for word in QUESTIONS]
tell("alone", seconds=time.monotonic() - start, same=alone == ANSWERS)

tell("line", clones=line_of_clones(2))
