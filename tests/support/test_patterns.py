from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from tdquant.support.patterns import matches, matching, unmatched_patterns

words = st.text(alphabet="ab.*?[]", max_size=6)


@given(words, words)
def test_means_what_fnmatch_means_or_the_path_itself(path, pattern):
    assert matches(path, pattern) == (path == pattern or fnmatchcase(path, pattern))


def test_in_order_and_idle():
    patterns = ["b.*", "a", "*.conv", "nowhere", "n*"]
    assert matching("b.conv", patterns) == ["b.*", "*.conv"]
    assert unmatched_patterns(patterns, {"a": 1, "b.conv": 2}) == ["nowhere", "n*"]
