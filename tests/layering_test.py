#!/usr/bin/env python3
"""Includes point downward only: a component may include itself and those on lower levels.

Components on one level may not include each other. guest/channel is the wire format that host and
guest share; the rest of guest/ builds alone and may include nothing but guest/. sim/ drives exchange/core/
and may include nothing else.
"""
import pathlib
import re
import sys

LEVELS = [
    ["base"],
    ["image"],
    ["peer", "lazyfs", "qemu", "guest/channel"],
    ["cluster", "exchange"],
    ["keeper", "guestlink"],
    ["vm"],
    ["api"],
    ["cli"],
    ["sim"],
]
ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def component_of(path):
    """The component that a path inside the tree belongs to, or None (a system header, a test)."""
    if path.startswith("guest/channel/"):
        return "guest/channel"
    return path.split("/")[0] if "/" in path else None


def allowed(source, target):
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    if source == target:
        return True
    if source == "guest/channel":  # host and guest compile it: nothing else may be needed
        return False
    if source == "guest":
        return target == "guest/channel"
    if source not in level or target not in level:
        return False
    return level[target] < level[source]


def main():
    components = {name for names in LEVELS for name in names} | {"guest"}
    wrong = []
    for top in sorted({name.split("/")[0] for name in components}):
        for file in sorted((ROOT / top).rglob("*")):
            if file.suffix not in (".h", ".cc", ".c") or not file.is_file():
                continue
            name = file.relative_to(ROOT).as_posix()
            source = component_of(name)
            for include in INCLUDE.findall(file.read_text(encoding="utf-8")):
                target = component_of(include)
                if target not in components or not (ROOT / target).is_dir():
                    continue  # beside the file, or a library's
                core_only = source != "sim" or include.startswith(("sim/", "exchange/core/"))
                if not allowed(source, target) or not core_only:
                    wrong.append(f"{name}: includes {include}: {source} may not use {target}")
    print("\n".join(wrong) if wrong else "layering: every include points downward")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
