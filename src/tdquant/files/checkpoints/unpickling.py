"""Unpickling without running the pickle.

A pickle is a program for a small stack machine. It can name any function of any module, and
Python's unpickler imports and calls it. The machine here builds plain containers, strings and
numbers. A name in the pickle is looked up in a table that the caller gives; a name that is not in
the table becomes an ``Inert`` object, and so does whatever is called on it. Nothing is ever
imported, and the only functions that run are those of the table.

Decoding is left to ``pickletools`` of the standard library. The number of instructions, what an
instruction may declare as its size, and what may be a key of a dictionary are bounded, so that
neither nested references nor declared sizes exhaust memory or time.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, cast

MOST_INSTRUCTIONS = 4_000_000
"""A checkpoint of 10,000 tensors has a quarter of it. Items that functions are given count as
well.
"""

MOST_BYTES = 1 << 28
"""Bytes of a pickle; those of tensors lie outside."""

HOSTILE = {
    "os", "posix", "nt", "sys", "subprocess", "pty", "runpy", "shutil", "socket", "importlib",
    "ctypes", "webbrowser", "code", "commands", "popen2", "io.open", "_io.open",
    "builtins.eval", "builtins.exec", "builtins.compile", "builtins.open", "builtins.__import__",
    "__builtin__.eval", "__builtin__.exec", "__builtin__.execfile", "__builtin__.compile",
    "__builtin__.open", "__builtin__.file", "__builtin__.__import__",
}  # fmt: skip
"""Modules and functions that no file of data has a reason to name.

Refusing them is a courtesy to whoever was sent such a file, not the protection: a pickle that
hides what it wants behind other names gets inert objects.
"""

_KEYS = (str, bytes, float, type(None))
_MARK = object()


class Inert:
    """Stands for a global of a pickle, or for what calling one would have given.

    It takes the place of an instance as well: items, members and attributes that the pickle adds
    to it are dropped.

    Attributes:
        name: Dotted name of the global.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<inert {self.name}>"


def unpickle(
    file: BinaryIO,
    functions: Mapping[str, Callable[..., Any]],
    persistent: Callable[[Any], Any] | None = None,
    *,
    strict: bool = False,
) -> Any:
    """Reads one pickle from a file's current position, and leaves the file behind it.

    Sets become lists. Strings of Python 2 become text, one character a byte.

    Arguments:
        file: A seekable binary file.
        functions: Dotted name of a global -> the function that is called in its place. An object
            that such a function returns may have a method ``fill(state)``, which gets what the
            pickle would have given to ``__setstate__``.
        persistent: Resolves persistent ids; without it they are an error.
        strict: Refuse globals that are not among ``functions``.

    Raises:
        pickle.UnpicklingError: The pickle is cut, malformed, hostile, or larger than the limits.
    """
    machine = _Machine(functions, persistent, strict)
    try:
        return machine.run(_Bounded(file))
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle makes its reader raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise pickle.UnpicklingError(f"damaged: {reason}") from error


class _Bounded:
    """A file that refuses reads past its end, and more than MOST_BYTES, instead of allocating what
    they ask for.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        here = file.tell()
        self.left = min(file.seek(0, io.SEEK_END) - here, MOST_BYTES)
        file.seek(here)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise pickle.UnpicklingError("it is cut: it declares more bytes than there are")
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(self.left)
        self.left -= len(line)
        return line


class _Machine:
    """The stack machine. Methods named after opcodes execute them."""

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        persistent: Callable[[Any], Any] | None,
        strict: bool,
    ) -> None:
        self.functions, self.persistent, self.strict = functions, persistent, strict
        self.items = self.bytes = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: _Bounded) -> Any:
        for opcode, argument, _ in pickletools.genops(cast(BinaryIO, file)):
            self._count(items=1)
            name = opcode.name
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                self.stack.append(argument)
            elif name not in _SKIPPED:
                execute = getattr(self, f"_{name.lower()}", None)
                if execute is None:
                    raise pickle.UnpicklingError(f"it has the instruction {name}")
                execute(argument)
        (result,) = self.stack
        return result

    def _count(self, items: int = 0, size: int = 0) -> None:
        """Keeps account of what was done and made."""
        self.items += items
        self.bytes += size
        if self.items > MOST_INSTRUCTIONS or self.bytes > MOST_BYTES:
            raise pickle.UnpicklingError(f"more than {MOST_INSTRUCTIONS:,} instructions")

    def _top(self) -> list[Any]:
        """Pops everything above the last mark."""
        i = len(self.stack) - 1
        while self.stack[i] is not _MARK:
            i -= 1
            if i < 0:
                raise pickle.UnpicklingError("a mark is missing")
        items = self.stack[i + 1 :]
        del self.stack[i:]
        return items

    # ---- stack and memo
    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._top()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    _binput = _long_binput = _put
    _binget = _long_binget = _get

    # ---- containers
    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    _empty_set = _empty_list

    def _list(self, _: Any) -> None:
        self.stack.append(self._top())

    _frozenset = _list

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._top()))

    def _dict(self, _: Any) -> None:
        self._setitems_of({}, self._top(), push=True)

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._top())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._setitems_of(self.stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        items = self._top()
        self._setitems_of(self.stack[-1], items)

    def _setitems_of(self, target: Any, items: list[Any], push: bool = False) -> None:
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[checked_key(key)] = value
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"keys for a {type(target).__name__}")
        if push:
            self.stack.append(target)

    # ---- globals and calls
    def _global(self, names: str) -> None:
        self.stack.append(self._named(".".join(names.split(" ", 1))))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise pickle.UnpicklingError("a global without a name")
        self.stack.append(self._named(f"{module}.{name}"))

    def _named(self, name: str) -> Inert:
        """The global of that name, never imported."""
        known = name in self.functions
        if not known and (name in HOSTILE or name.partition(".")[0] in HOSTILE):
            raise pickle.UnpicklingError(f"it names {name}, which no file of data needs")
        if not known and self.strict:
            raise pickle.UnpicklingError(f"it names {name}")
        return Inert(name)

    def _ext1(self, code: int) -> None:
        self.stack.append(Inert(f"extension {code}"))

    _ext2 = _ext4 = _ext1

    def _reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._called(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self._reduce(None)

    def _inst(self, names: str) -> None:
        arguments = tuple(self._top())
        self._global(names)
        self.stack.append(self._called(self.stack.pop(), arguments))

    def _obj(self, _: Any) -> None:
        function, *arguments = self._top()
        self.stack.append(self._called(function, tuple(arguments)))

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Inert) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError(f"a call of a {type(function).__name__}")
        known = self.functions.get(function.name)
        if known is None:
            return Inert(f"{function.name}()")
        for argument in arguments:
            if isinstance(argument, (str, bytes)):
                self._count(size=len(argument))
            elif isinstance(argument, (list, tuple, dict)):
                self._count(items=len(argument))
        return known(*arguments)

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        fill = getattr(self.stack[-1], "fill", None)
        if fill is not None:
            fill(state)

    def _persid(self, identity: Any) -> None:
        if self.persistent is None:
            raise pickle.UnpicklingError("it refers to objects outside itself")
        self.stack.append(self.persistent(identity))

    def _binpersid(self, _: Any) -> None:
        self._persid(self.stack.pop())


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_SKIPPED = {"PROTO", "FRAME", "STOP"}


def checked_key(key: Any) -> Any:
    """A key of a dictionary, if hashing and comparing it is harmless, or a stand-in for it.

    Hashing nested tuples takes time that is exponential in their depth or overflows the stack, and
    hashes of tuples and long integers can be made to collide.
    """
    small = isinstance(key, int) and abs(key) < 2**63
    return key if small or isinstance(key, (*_KEYS, Inert)) else Inert(type(key).__name__)
