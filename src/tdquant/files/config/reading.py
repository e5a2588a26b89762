"""YAML files and ``key=value`` overrides, merged in order into plain dictionaries and lists.

A later file wins over an earlier one and an override over every file, key by key; lists are
replaced whole. ``${other.key}`` refers to another value of the merged configuration.

References:
    OmegaConf: https://omegaconf.readthedocs.io
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tdquant.errors import ConfigError, first_line, raise_collected
from tdquant.files.config.checking import dotted
from tdquant.files.looking import entries, is_file, is_folder
from tdquant.support.optional import require

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def read_config(paths: Paths, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads and merges configuration files.

    Arguments:
        paths: A YAML file or several, the later ones winning.
        overrides: ``key.path=value`` each, with or without a leading ``--``, the value in YAML:
            ``"model.params.timesteps=100"``, ``"data.params.batch_size=8"``. They win over files.

    Returns:
        Dictionaries, lists, strings, numbers and None, interpolations resolved.

    Raises:
        ConfigError: A file is missing or no YAML, an override is malformed, an interpolation
            leads nowhere, or a value is still ``???``; all mistakes of one kind are listed.
        MissingDependencyError: omegaconf is not installed.
    """
    conf = require("omegaconf", "train").OmegaConf
    files = [Path(p) for p in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    if not files:
        raise ConfigError("no configuration file was given", fix="name at least one YAML file")
    where = " + ".join(str(file) for file in files)
    mistakes = [_missing(file) for file in files if not is_file(file)]
    raise_collected(ConfigError, mistakes, "the configuration files")
    parts = []
    for file in files:
        try:
            parts.append(conf.load(file))
            if not conf.is_dict(parts[-1]):
                mistakes.append(f"{file}: a list at the top, not keys")
        except Exception as error:  # PyYAML's and OmegaConf's errors have no other common base
            mistakes.append(_described(str(file), error))
    raise_collected(ConfigError, mistakes, "the configuration files")
    parts += _overrides(overrides, conf)
    merged = parts[0]
    for part in parts[1:]:
        try:
            merged = conf.merge(merged, part)
        except Exception as error:
            raise ConfigError(
                "the files and overrides cannot be merged", where=where, why=first_line(error)
            ) from error
    raise_collected(ConfigError, _unresolved(merged, conf), where)
    return conf.to_container(merged, resolve=True)


def _missing(file: Path) -> str:
    """Describes a file that is not there, with the most similar names beside it."""
    if is_folder(file):
        return f"{file}: a folder, not a file"
    if not is_folder(file.parent):
        return f"{file}: no such file, and no folder {file.parent}"
    beside = [p.name for p in entries(file.parent) if p.suffix in (".yaml", ".yml")]
    close = get_close_matches(file.name, beside, cutoff=0.3) or sorted(beside)[:3]
    return f"{file}: no such file; " + (
        f"nearest there: {', '.join(close)}" if close else "no YAML file is there"
    )


def _overrides(overrides: Sequence[str], conf: Any) -> list[Any]:
    """One configuration for each override; malformed ones are an error that lists all."""
    parts, mistakes = [], []
    for given in overrides:
        text = given.removeprefix("--")
        key, equals, _ = text.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            mistakes.append(f"{given!r}: an override is key.path=value")
            continue
        try:
            parts.append(conf.from_dotlist([text]))
        except Exception as error:
            mistakes.append(_described(repr(given), error))
    raise_collected(ConfigError, mistakes, "the overrides")
    return parts


def _unresolved(node: Any, conf: Any, where: str = "") -> Iterator[str]:
    """Finds interpolations that cannot be resolved, and values that are still to be given."""
    for key in range(len(node)) if conf.is_list(node) else node:
        path = dotted(where, key)
        if conf.is_missing(node, key):
            yield f"{path}: still ???, to be given by an override"
            continue
        try:
            value = node[key]
        except Exception as error:
            yield f"{path}: {first_line(error)}"
            continue
        if conf.is_config(value) and not conf.is_interpolation(node, key):
            yield from _unresolved(value, conf, path)


def _described(where: str, error: Exception) -> str:
    """A parser's message, with the line where it knows one."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or first_line(error)
    return f"{where}, line {mark.line + 1}: {problem}" if mark else f"{where}: {problem}"
