#!/usr/bin/env python3
"""The documents and the code say the same, as far as a program can see it.

Links and paths lead somewhere; every setting, error code, command, option and route of the code is
written down, and nothing is written down that the code does not have. Needs no build.
"""
import pathlib
import re
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ("base", "image", "peer", "lazyfs", "keeper", "qemu", "guest", "guestlink", "vm", "api",
           "cli", "lab", "tests", "guest-images", "packaging", "demo", "bench")
problems = []


def check(condition, text):
    if not condition:
        problems.append(text)


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def documents():
    return [ROOT / "README.md"] + sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
                                         if path.name != "README.md")


def block(text, start, end="\n}"):
    """What stands between `start` and the next `end`."""
    at = text.index(start)
    return text[at:text.index(end, at)]


def slugs(text):
    """GitHub's anchors of a document's headings."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", text, re.M)}


def check_links():
    reached = {ROOT / "README.md"}
    for document in documents():
        text = document.read_text(encoding="utf-8")
        name = document.relative_to(ROOT)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (document.parent / path).resolve() if path else document
            check(file.exists(), f"{name}: link to {target}: no such file")
            reached.add(file)
            if anchor and file.suffix == ".md" and file.exists():
                check(anchor in slugs(file.read_text(encoding="utf-8")),
                      f"{name}: link to {target}: no such heading")
        # Paths in backticks that look like a file of ours.
        for path in re.findall(r"`([a-z][\w.-]*/[\w./-]+\.(?:h|cc|py|md|yaml|1|8|service))`", text):
            if path.split("/")[0] in (*SOURCES, "docs", "man", "cmake") and "NAME" not in path:
                check((ROOT / path).exists(), f"{name}: `{path}`: no such file")
    for document in documents():
        check(document in reached, f"{document.relative_to(ROOT)}: no document links to it")


def check_paths_in_sources():
    for top in SOURCES:
        for file in sorted((ROOT / top).rglob("*")):
            if file.suffix not in (".h", ".cc", ".c", ".py", ".yaml", ".sh", ".service"):
                continue
            for path in re.findall(r"\b(?:docs|man)/[\w-]+\.(?:md|1|8)\b",
                                   file.read_text(encoding="utf-8", errors="replace")):
                check((ROOT / path).exists(), f"{file.relative_to(ROOT)}: {path}: no such file")


def check_settings():
    struct = block(read("vm/host.h"), "struct Settings {", "\n};")
    fields = set(re.findall(r"^  [\w:]+ (\w+)(?: =[^;]*)?;", struct, re.M))
    keys = dict(re.findall(r'\{"(\w+)",\s*(?:\w+\{)?&Settings::(\w+)', read("api/settings.cc")))
    check(len(fields) > 5 and len(keys) > 5, "Settings: this test cannot read them any more")
    for field in sorted(fields - set(keys.values())):
        check(False, f"api/settings.cc: no key for Settings::{field}")
    table = set(re.findall(r"^\| `(\w+)` \|", read("docs/settings.md"), re.M))
    manual = set(re.findall(r"^\.It Cm (\w+)", block(read("man/snowd.8"), ".Ss Settings", ".Sh FILES"),
                            re.M))
    for place, written in (("docs/settings.md", table), ("man/snowd.8", manual)):
        for key in sorted(set(keys) ^ written):
            check(False, f"{place}: {key}: " + ("is missing" if key in keys else "no such setting"))


def check_errors():
    numbers = dict(re.findall(r"^  (\w+) = (\d+),", block(read("base/result.h"), "enum class Code", "};"),
                              re.M))
    rows = re.findall(r'Row\{Code::(\w+), "(\w+)", (\d+)\}', read("base/result.cc"))
    check(len(rows) > 5, "base/result.cc: this test cannot read it any more")
    code = {(numbers[name], text, status) for name, text, status in rows}
    table = set(re.findall(r"^\| (\d+) \| `(\w+)` \| (\d+) \|", read("docs/errors.md"), re.M))
    for row in sorted(code ^ table):
        check(False, f"docs/errors.md: {row}: " + ("is missing" if row in code else "is not the code's"))
    manual = set(re.findall(r"^\.It (\d+)\n(\w+)", read("man/snow.1"), re.M))
    for row in sorted({(number, name) for number, name, _ in code} ^ manual):
        check(False, f"man/snow.1: exit status {row}: not the same as in the code")
    enum = yaml.safe_load(read("api/openapi.yaml"))["components"]["schemas"]["Error"]["properties"]["code"]
    check(set(enum["enum"]) == {name for _, name, _ in code}, "openapi.yaml: other error codes")


def check_channel():
    types = re.findall(r"^  (\w+) = (\d+),", block(read("guest/channel/message.h"), "enum class Type", "};"),
                       re.M)
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", read("docs/channel.md"), re.M)
    check(types and {(number, name) for name, number in types} == set(rows),
          f"docs/channel.md: messages are not those of message.h: {sorted(rows)}")


def check_tests_of_specification():
    names = {path.stem for pattern in ("*_test.*", "*_fuzz.cc") for path in ROOT.rglob(pattern)
             if "build" not in path.relative_to(ROOT).parts}
    for name in re.findall(r"`(\w+_(?:test|fuzz))`", read("SPECIFICATION.md")):
        check(name in names, f"SPECIFICATION.md: {name}: no such test")


def commands():
    return set(re.findall(r'\badd\((?:\*\w+, )?"([\w-]+)",', read("cli/tree.cc")))


def check_commands():
    manual = read("man/snow.1")
    words = set()
    for line in manual.splitlines():
        if line.startswith((".It ", ".Cm ")):
            words.update(re.findall(r"[\w-]+", line))
    for command in sorted(commands()):
        check(command in words, f"man/snow.1: command {command} is missing")
    options = {name for names in re.findall(r'"((?:-\w,)?--[\w-]+)"', read("cli/tree.cc"))
               for name in re.findall(r"--([\w-]+)", names)}
    written = set(re.findall(r"Fl -([\w-]+)", manual))
    in_manual = set(re.findall(r"Fl (\w)\b", manual))
    by_short = {name for key, name in re.findall(r'"-(\w),--([\w-]+)"', read("cli/tree.cc"))
                if key in in_manual}
    for option in sorted(options - written - by_short):
        check(False, f"man/snow.1: option --{option} is missing")
    for option in sorted(written - options):
        check(False, f"man/snow.1: --{option}: no such option")


def check_routes():
    routes = {}
    for method, path, more in re.findall(r'\{"([A-Z]+)", "/v1(/[^"]*)", handlers::\w+(?:, \{([^}]*)\})?\}',
                                         read("api/routes.cc")):
        routes[method, path] = set(re.findall(r'"(\w+)"', more))
    check(len(routes) > 5, "api/routes.cc: this test cannot read it any more")
    document = {}
    for path, item in yaml.safe_load(read("api/openapi.yaml"))["paths"].items():
        for method in ("get", "post", "put", "delete"):
            if method in item:
                parameters = item.get("parameters", []) + item[method].get("parameters", [])
                document[method.upper(), re.sub(r"\{\w+\}", "{}", path)] = {
                    p["name"] for p in parameters if p.get("in") == "query"}
    for route in sorted(set(routes) ^ set(document)):
        check(False, f"openapi.yaml: {' '.join(route)}: "
              + ("is missing" if route in routes else "the server has no such route"))
    for route in sorted(set(routes) & set(document)):
        check(routes[route] == document[route],
              f"openapi.yaml: {' '.join(route)}: query {document[route]}, the server's {routes[route]}")


def check_commands_in_documents():
    front = read("dev")
    known = {word for words in re.findall(r"^  ([\w| -]+)\)", block(front, "case $command in", "\nesac"),
                                          re.M) for word in re.split(r"[| ]+", words)}
    for document in documents():
        name = document.relative_to(ROOT)
        text = document.read_text(encoding="utf-8")
        for command in re.findall(r"\./dev (\w+)", text):
            check(command in known, f"{name}: ./dev {command}: no such command")
        for command in re.findall(r"^(?:    )?[$#] snow ([a-z][\w-]*)", text, re.M):
            check(command in commands(), f"{name}: snow {command}: no such command")
    for command in ("demo", "test"):
        check(f"./dev {command}" in read("README.md"), f"README.md: does not name ./dev {command}")


def main():
    for file in ("README.md", "ARCHITECTURE.md", "SPECIFICATION.md", "CONTRIBUTING.md",
                 "CHANGELOG.md", "LICENSE"):
        check((ROOT / file).is_file(), f"{file}: is missing")
    for part in (check_links, check_paths_in_sources, check_settings, check_errors, check_channel,
                 check_tests_of_specification,
                 check_commands, check_routes, check_commands_in_documents):
        part()
    print("\n".join(problems) if problems else "documents: as the code")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
