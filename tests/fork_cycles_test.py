#!/usr/bin/env python3
"""Fork, join, and again: nothing of it stays. The short version of tests/soak/fork_join."""
import pathlib
import subprocess
import sys

SOAK = pathlib.Path(__file__).resolve().parent / "soak/fork_join"

if __name__ == "__main__":
    sys.exit(subprocess.run([sys.executable, SOAK, "20"], check=False).returncode)
