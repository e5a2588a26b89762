"""Unpickling without running the pickle.

A pickle is a program for a small stack machine. It can name any function of any module, and
Python's unpickler imports and calls it. The machine here builds plain containers, strings and
numbers. The only functions that it calls are those of a table that the caller gives; every other
name becomes an ``Inert`` object, and so does what calling it would give. Nothing is imported.

``pickletools`` of the standard library decodes the instructions. Their number, the sizes that they
declare and the keys of dictionaries are bounded, so that neither nested references nor declared
sizes exhaust memory or time.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, cast

MOST_INSTRUCTIONS = 4_000_000
"""A checkpoint of 10,000 tensors has a quarter of it. Items given to functions count as well."""

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

Refusing them is a courtesy to whoever was sent such a file, not the protection: a pickle that uses
other names gets inert objects.
"""

_KEYS = (str, bytes, float, type(None))
_MARK = object()


class Inert:
    """Stands for a global of a pickle, or for what calling one would have given.

    As an instance, it drops the items, members and attributes that the pickle adds to it.

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
    """The stack machine."""

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
        """The object that a pickle gives."""
        for opcode, argument, _ in pickletools.genops(cast(BinaryIO, file)):
            self._count(items=1)
            self._execute(opcode.name, argument)
        (result,) = self.stack
        return result

    def _execute(self, name: str, argument: Any) -> None:
        """Executes one instruction; those that are not listed here are errors."""
        push, pop = self.stack.append, self.stack.pop
        match name:
            case _ if name in _LITERALS:
                push(argument)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                push(self.memo[argument])
            case "MARK":
                push(_MARK)
            case "TUPLE":
                push(tuple(self._above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                self.stack[-count:] = [tuple(self.stack[-count:])]
            case "EMPTY_TUPLE":
                push(())
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "EMPTY_LIST" | "EMPTY_SET":
                push([])
            case "LIST" | "FROZENSET":
                push(self._above_mark())
            case "APPEND":
                self._extend([pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._above_mark())
            case "EMPTY_DICT":
                push({})
            case "DICT":
                items = self._above_mark()
                push({})
                self._set(items)
            case "SETITEM":
                value, key = pop(), pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._above_mark())
            case "GLOBAL":
                push(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = pop(), pop()
                push(self._named(module, attribute))
            case "EXT1" | "EXT2" | "EXT4":
                push(Inert(f"extension {argument}"))
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                if name == "NEWOBJ_EX":
                    pop()  # arguments by name
                arguments, function = pop(), pop()
                push(self._called(function, arguments))
            case "INST":
                arguments = tuple(self._above_mark())
                push(self._called(self._named(*argument.split(" ", 1)), arguments))
            case "OBJ":
                function, *given = self._above_mark()
                push(self._called(function, tuple(given)))
            case "BUILD":
                state = pop()
                fill = getattr(self.stack[-1], "fill", None)
                if fill is not None:
                    fill(state)
            case "PERSID" | "BINPERSID":
                identity = pop() if name == "BINPERSID" else argument
                if self.persistent is None:
                    raise pickle.UnpicklingError("it refers to objects outside itself")
                push(self.persistent(identity))
            case "POP":
                pop()
            case "POP_MARK":
                self._above_mark()
            case "DUP":
                push(self.stack[-1])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise pickle.UnpicklingError(f"it has the instruction {name}")

    def _count(self, items: int = 0, size: int = 0) -> None:
        """Keeps account of what was done and made."""
        self.items += items
        self.bytes += size
        if self.items > MOST_INSTRUCTIONS or self.bytes > MOST_BYTES:
            raise pickle.UnpicklingError(f"more than {MOST_INSTRUCTIONS:,} instructions")

    def _above_mark(self) -> list[Any]:
        """Pops everything above the last mark, and the mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise pickle.UnpicklingError("a mark is missing")

    def _extend(self, items: list[Any]) -> None:
        """Adds items to the list on top."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    def _set(self, items: list[Any]) -> None:
        """Adds keys and values to the dictionary on top."""
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[checked_key(key)] = value
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError(f"keys for a {type(target).__name__}")

    def _named(self, module: Any, attribute: Any) -> Inert:
        """The stand-in for a global, which is never imported."""
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise pickle.UnpicklingError("a global without a name")
        name = f"{module}.{attribute}"
        if name not in self.functions:
            if name in HOSTILE or name.partition(".")[0] in HOSTILE:
                raise pickle.UnpicklingError(f"it names {name}, which no file of data needs")
            if self.strict:
                raise pickle.UnpicklingError(f"it names {name}")
        return Inert(name)

    def _called(self, function: Any, arguments: Any) -> Any:
        """What the table's function gives, or a stand-in for it."""
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


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
"""Instructions that push their argument, which ``pickletools`` has decoded."""


def checked_key(key: Any) -> Any:
    """A key of a dictionary, if hashing and comparing it is harmless, or a stand-in for it.

    Hashing nested tuples takes time that is exponential in their depth or overflows the stack, and
    hashes of tuples and long integers can be made to collide.
    """
    small = isinstance(key, int) and abs(key) < 2**63
    return key if small or isinstance(key, (*_KEYS, Inert)) else Inert(type(key).__name__)
