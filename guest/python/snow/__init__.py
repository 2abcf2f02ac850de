"""Fork the virtual machine that this program runs in (Thundersnow).

    import snow
    squares = snow.map(lambda x: x * x, range(1000), n=8)

runs the function over eight clones of the whole machine. The function, the items and everything
else are there because the machine is copied; only results are pickled, and come back in order.

    with snow.ticket(8) as t:
        index = t.clone()              # 0 here, 1 .. t.count in the clones
        if index:
            snow.exit(work(index))     # ends the clone; the value travels to the parent
        values = [r.value for r in t.join()]

An exception that ends a clone inside the `with` block is raised at the join as CloneError, with the
clone's traceback; a clone that died raises CloneDied. Errors of the host are SnowError.
"""

import ctypes as _c
import os as _os
import pickle as _pickle
import sys as _sys
import traceback as _traceback

__all__ = ["map", "ticket", "exit", "info", "checkpoint", "Ticket", "Result", "Machine",
           "SnowError", "CloneError", "CloneDied", "HIERARCHICAL", "EXACT", "SPREAD", "LOCAL"]

HIERARCHICAL = 1
EXACT = 2
SPREAD = 4
LOCAL = 8
_HOW = ("exited", "killed", "crashed", "lost", "running")
_ID_BYTES = 64


class SnowError(Exception):
    """The host or the agent refused. `.code` is its name ("no_room", ...)."""

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code


class CloneError(SnowError):
    """A clone ended with an exception. `.index`, `.traceback` (text of the clone's), `.exception`
    (the exception itself, if it could be pickled; also the __cause__)."""

    def __init__(self, index, summary, traceback, exception=None):
        super().__init__("guest_failed", f"clone {index} raised {summary}\n\n{traceback}")
        self.index = index
        self.traceback = traceback
        self.exception = exception


class CloneDied(SnowError):
    """A clone ended without a result. `.index`, `.how` ("killed", "crashed", "lost", ...)."""

    def __init__(self, index, how, status):
        super().__init__("guest_failed", f"clone {index}: {how}, status {status}, no result")
        self.index = index
        self.how = how
        self.status = status


class _CResult(_c.Structure):
    _fields_ = [("index", _c.c_uint), ("how", _c.c_int), ("status", _c.c_int),
                ("payload", _c.c_void_p), ("size", _c.c_size_t)]


class _CMachine(_c.Structure):
    _fields_ = [(name, _c.c_char * _ID_BYTES) for name in ("id", "name", "parent", "ticket")] + \
               [("index", _c.c_uint), ("generation", _c.c_uint)]


def _load(kind):
    lib = kind(_os.environ.get("SNOW_LIBRARY", "libsnow.so.0"))
    pointer, uint, text = _c.c_void_p, _c.c_uint, _c.c_char_p
    for name, result, arguments in (
            ("request_ticket", _c.c_int, [uint, uint, _c.POINTER(pointer)]),
            ("ticket_id", text, [pointer]),
            ("ticket_processes", uint, [pointer]),
            ("ticket_free", None, [pointer]),
            ("clone", _c.c_int, [pointer]),
            ("checkpoint", _c.c_int, [_c.c_char_p]),
            ("create_clones", _c.c_int, [text, pointer]),
            ("exit", _c.c_int, [_c.c_int, text, _c.c_size_t]),
            ("join", _c.c_int, [pointer, _c.c_int, _c.POINTER(pointer)]),
            ("results_get", _c.POINTER(_CResult), [pointer, uint]),
            ("results_free", None, [pointer]),
            ("kill", _c.c_int, [pointer]),
            ("info", _c.c_int, [_c.POINTER(_CMachine)]),
            ("strerror", text, [_c.c_int]),
            ("message", text, [])):
        function = getattr(lib, "snow_" + name)
        function.restype, function.argtypes = result, arguments
    return lib


_lib = _load(_c.CDLL)


def _checked(code):
    if code < 0:
        raise SnowError(_lib.snow_strerror(code).decode(),
                        _lib.snow_message().decode(errors="replace"))
    return code


def _flush():
    for stream in (_sys.stdout, _sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError, OSError):
            pass


def exit(value=None, status=0):
    """Ends this clone; `value` (pickled) and `status` travel to the parent's join."""
    _send(("value", value), status)


def _send(outcome, status):
    payload = _pickle.dumps(outcome, protocol=_pickle.HIGHEST_PROTOCOL)
    _flush()
    _checked(_lib.snow_exit(status, payload, len(payload)))


def _send_exception(error):
    """Ends this clone with an exception, the object itself if it survives pickling."""
    text = "".join(_traceback.format_exception(type(error), error, error.__traceback__))
    summary = "".join(_traceback.format_exception_only(type(error), error)).strip()
    try:
        _pickle.loads(_pickle.dumps(error))
    except Exception:
        error = None
    _send(("error", (summary, text, error)), 1)


class Result:
    """How a clone ended: .index, .how, .status, and .value, which raises what went wrong."""

    def __init__(self, index, how, status, payload):
        self.index, self.how, self.status, self._payload = index, how, status, payload

    @property
    def value(self):
        if self.how != "exited" or not self._payload:
            raise CloneDied(self.index, self.how, self.status)
        kind, content = _pickle.loads(self._payload)
        if kind == "value":
            return content
        summary, text, error = content
        raise CloneError(self.index, summary, text, error) from error

    def __repr__(self):
        return f"<snow.Result of clone {self.index}: {self.how}, status {self.status}>"


class Ticket:
    """Room for clones; see snow.ticket. `.id`, `.count`: clones are numbered 1 .. count."""

    def __init__(self, n, flags=0):
        self._handle = _c.c_void_p()
        self._flags = flags
        self._index = 0
        self._open = False  # clones may be there
        self.granted = _checked(_lib.snow_request_ticket(n, flags, _c.byref(self._handle)))
        self.id = _lib.snow_ticket_id(self._handle).decode()
        self.count = _lib.snow_ticket_processes(self._handle)
        self._open = True

    def _own(self):
        if not self._handle:
            raise SnowError("spent", f"ticket '{self.id}': its `with` block is over")
        return self._handle

    def clone(self):
        """Clones the machine: 0 here, 1 .. count in the clones."""
        handle = self._own()
        _flush()
        if self._flags & HIERARCHICAL:
            self._index = _clone_hierarchical(handle)
        else:
            self._index = _checked(_lib.snow_clone(handle))
        return self._index

    def create(self, checkpoint):
        """Makes clones of a checkpoint, which go on in snow.checkpoint; how many."""
        name = getattr(checkpoint, "id", checkpoint)
        return _checked(_lib.snow_create_clones(name.encode(), self._own()))

    def join(self, timeout=None):
        """The Results of all clones, in order, after at most `timeout` seconds."""
        results = _c.c_void_p()
        milliseconds = -1 if timeout is None else int(timeout * 1000)
        count = _checked(_lib.snow_join(self._own(), milliseconds, _c.byref(results)))
        try:
            out = []
            for i in range(count):
                entry = _lib.snow_results_get(results, i).contents
                payload = _c.string_at(entry.payload, entry.size) if entry.size else b""
                out.append(Result(entry.index, _HOW[entry.how], entry.status, payload))
        finally:
            _lib.snow_results_free(results)
        self._open = any(result.how == "running" for result in out)
        return out

    def kill(self):
        """Ends all clones at once; how many."""
        handle = self._own()
        self._open = False
        return _checked(_lib.snow_kill(handle))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self._index:  # a clone never leaves the block
            if error is None:
                exit()
            _send_exception(error)
        if self._open:
            try:
                self.kill()
            except SnowError:
                if error is None:
                    raise
        _lib.snow_ticket_free(self._handle)
        self._handle = _c.c_void_p()


def _clone_hierarchical(handle):
    """libsnow forks in the clone: Python has to be told, as os.fork tells it, and the interpreter
    lock is held over the call (PyDLL)."""
    api = _c.pythonapi
    lib = _load(_c.PyDLL)
    first = _os.getpid()
    api.PyOS_BeforeFork()
    index = lib.snow_clone(handle)
    if _os.getpid() == first:
        api.PyOS_AfterFork_Parent()
    else:
        api.PyOS_AfterFork_Child()
    return _checked(index)


def ticket(n, flags=0, *, spread=False):
    """Reserves room for up to n clones: a Ticket, to be used as a context manager. `spread`: on
    all hosts of the cluster (SPREAD); LOCAL in flags: on this machine's host only."""
    return Ticket(n, flags | SPREAD if spread else flags)


class Checkpoint:
    """A frozen machine: .id, and .index, which is 0 where it was asked for and the clone's number
    in a clone made from it."""

    def __init__(self, name, index):
        self.id, self.index = name, index


def checkpoint():
    """Freezes the machine as it is, to make clones of later: see Ticket.create."""
    name = _c.create_string_buffer(_ID_BYTES)
    _flush()
    index = _checked(_lib.snow_checkpoint(name))
    return Checkpoint(name.value.decode(), index)


class Machine:
    """Who this machine is: .id, .name, .parent, .ticket, .index, .generation."""


def info():
    raw = _CMachine()
    _checked(_lib.snow_info(_c.byref(raw)))
    machine = Machine()
    for name in ("id", "name", "parent", "ticket"):
        setattr(machine, name, getattr(raw, name).decode())
    machine.index, machine.generation = raw.index, raw.generation
    return machine


def map(function, items, n=8, flags=0, *, spread=False):
    """[function(x) for x in items], over n clones of this machine. Clone i takes every count-th
    item, beginning with the (i-1)-th. The first item that failed raises CloneError or CloneDied.
    `spread`: the clones are on all hosts of the cluster."""
    items = list(items)
    if not items:
        return []
    with ticket(min(n, len(items)), flags, spread=spread) as t:
        index = t.clone()
        if index:
            exit([function(item) for item in items[index - 1::t.count]])
        out = [None] * len(items)
        for result in t.join():
            if result.index <= len(items):
                out[result.index - 1::t.count] = result.value
        return out
