"""A build with sanitizers (SNOW_SANITIZE): whether it is one, and where its programs report to."""
import os
import re


def sanitized(build):
    cache = build / "CMakeCache.txt"
    return bool(re.search(r"^SNOW_SANITIZE:\w+=.+", cache.read_text(), re.MULTILINE))


class Reports:
    """Where the sanitizers write to while one test runs: LOGS/NAME.report.PROGRAM.PID."""

    def __init__(self, logs, name):
        self.logs, self.prefix = logs, f"{name}.report"
        for path in self._paths():
            path.unlink()

    def _paths(self):
        return sorted(self.logs.glob(f"{self.prefix}.*"))

    def environment(self):
        """The test's environment; what the caller has set comes last and wins."""
        to_file = f"log_path={self.logs / self.prefix}:log_exe_name=1"
        # GCC's UBSan writes to stderr alone when ASan is there as well; the abort gets into ASan's file.
        options = {"ASAN_OPTIONS": f"{to_file}:handle_abort=1", "LSAN_OPTIONS": to_file,
                   "UBSAN_OPTIONS": f"{to_file}:print_stacktrace=1:halt_on_error=1:abort_on_error=1",
                   "TSAN_OPTIONS": to_file}
        return {**os.environ,
                **{name: f"{text}:{os.environ.get(name, '')}" for name, text in options.items()}}

    def text(self):
        return "".join(f"---- {path}\n{path.read_text(errors='replace')}" for path in self._paths())
