import pytest

from tdquant.errors import ConfigError, first_line, raise_collected


def test_one_error_lists_every_mistake():
    with pytest.raises(ConfigError, match=r"^2 mistakes in a.yaml:\n  - first\n  - second$"):
        raise_collected(ConfigError, iter(["first", "second"]), "a.yaml")
    with pytest.raises(ConfigError, match=r"^1 mistake in it \[here\]:\n  - only\n  fix: x$") as e:
        raise_collected(ConfigError, ["only"], "it", where="here", fix="x")
    assert e.value.where == "here"
    raise_collected(ConfigError, [], "a.yaml")


def test_more_mistakes_than_are_listed_are_counted():
    with pytest.raises(ConfigError, match=r"^5 mistakes in x:\n  - 0\n  - 1\n  - and 3 more$"):
        raise_collected(ConfigError, map(str, range(5)), "x", most=2)


def test_first_line():
    assert first_line(ValueError("  one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
