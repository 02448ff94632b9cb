"""Fake streams and a race detector: finds what would go wrong if the streams really ran at once.

Everything is computed immediately and in order. Meanwhile the `Witness` keeps a vector clock for each stream, and for
each storage which stream made it, wrote it last and has read it since. So it finds a missing wait whatever the timing.
A `Race` is a read or write of memory that another stream may still use, memory that another stream may be given
meanwhile, or a stream that waits for the host to read a number.
"""

import contextlib
import weakref
from collections import Counter, defaultdict

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST = "host"


class Race(AssertionError):
    """Two streams, or a stream and the host, use memory at once."""


class Memory:
    """One storage: its owner stream, last write, reads since then, and the streams that may use it."""

    def __init__(self, owner):
        self.owner, self.written, self.read, self.users = owner, (owner, 0), {}, {owner, HOST}


class Witness(TorchDispatchMode):
    """Checks every operation within its context. `stream(name)` makes streams for it."""

    def __init__(self):
        super().__init__()
        self.now = HOST
        self._clock = Counter()
        self._after = defaultdict(Counter)  # what each stream, or the host, is ordered after: times of the others
        self._known = {}

    def stream(self, name, kind=None):
        return (kind or Stream)(self, name)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = storages((args, kwargs))
        result = func(*args, **(kwargs or {}))
        made = [storage for storage in storages(result) if storage.data_ptr() not in map(address, given)]
        changed = self._changed(func, args, kwargs or {})
        if not made and not changed and storages(result):
            return result  # a view: nothing is touched
        if self.now != HOST and not storages(result) and func is not torch.ops.aten._assert_async.msg:
            raise Race(f"{self.now} waits for the host to read {func}")
        self._clock[self.now] += 1
        if self.now != HOST:  # a launch comes after all that the host did before
            self._after[self.now][HOST] = self._clock[HOST]
        for storage in given:
            self._reads(storage, func)
        for storage in [*changed, *made]:
            self._writes(storage, func)
        return result

    def record_event(self, stream):
        return dict(self._after[stream]) | {stream: self._clock[stream]}

    def order(self, stream, times):
        for other, time in times.items():
            self._after[stream][other] = max(self._after[stream][other], time)

    def allow(self, stream, tensors):
        for storage in storages(tensors):
            self._memory(storage).users.add(stream)

    def _changed(self, func, args, kwargs):
        names = [argument.name for argument in func._schema.arguments if is_written(argument)]
        values = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        return storages([values.get(name) for name in names])

    def _reads(self, storage, func):
        memory = self._memory(storage)
        self._check(memory.written, f"reads in {func} what is not written yet")
        if memory.owner != HOST and self.now not in memory.users:  # the host's is held until it has been read
            raise Race(f"{self.now} reads in {func} memory of {memory.owner}, which may give it to others meanwhile")
        memory.read[self.now] = self._clock[self.now]

    def _writes(self, storage, func):
        memory = self._memory(storage)
        for last in (memory.written, *memory.read.items()):
            self._check(last, f"writes in {func} what is still in use")
        memory.written, memory.read = (self.now, self._clock[self.now]), {}

    def _check(self, last, what):
        stream, time = last
        if stream != self.now and self._after[self.now][stream] < time:
            raise Race(f"{self.now} {what} by {stream}")

    def _memory(self, storage):
        where = address(storage)
        if where not in self._known:
            self._known[where] = Memory(self.now)
            weakref.finalize(storage, self._known.pop, where, None)
        return self._known[where]


class Stream:
    """A `Stream` under a witness."""

    def __init__(self, witness, name):
        self.witness, self.name, self.under_way = witness, name, []

    @contextlib.contextmanager
    def use(self):
        before, self.witness.now = self.witness.now, self.name
        try:
            yield
        finally:
            self.witness.now = before

    def record_event(self):
        return Event(self, self.witness.record_event(self.name), len(self.under_way))

    def wait_event(self, event, *tensors):
        self.witness.order(self.name, event.times)
        self.witness.allow(self.name, tensors)

    def to_host(self, tensor):
        """The host reads nonsense there until it has waited."""
        arriving = tensor.clone()
        host = torch.full_like(tensor, 77)
        self.under_way.append((host, arriving))
        return host


class Careless(Stream):
    """Never waits for another stream."""

    def wait_event(self, event, *tensors):
        self.witness.allow(self.name, tensors)


class Forgetful(Stream):
    """Waits, but lets other streams have the memory that it still reads."""

    def wait_event(self, event, *tensors):
        self.witness.order(self.name, event.times)


class Event:
    """An event: not passed until something waits for it."""

    def __init__(self, stream, times, copies):
        self.times, self.passed = times, False
        self._stream, self._copies = stream, copies

    def wait(self):
        self.passed = True
        self._stream.witness.order(HOST, self.times)
        with torch.inference_mode(), torch.utils._python_dispatch._disable_current_modes():
            for host, arriving in self._stream.under_way[: self._copies]:
                host.copy_(arriving)

    def since(self, earlier):
        return 0.0


def storages(tree):
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided]


def address(storage):
    return storage.data_ptr()


def is_written(argument):
    return argument.alias_info is not None and argument.alias_info.is_write
