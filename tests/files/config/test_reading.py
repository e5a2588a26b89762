import pytest

from tdquant.errors import ConfigError
from tdquant.files.config import read_config


@pytest.fixture
def write(tmp_path):
    def writes(text, name="base.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return writes


def test_later_files_win_key_by_key_and_overrides_over_all(write):
    base = write("a: {x: 1, y: [1, 2, 3], z: old}\n")
    more = write("a: {y: [4], z: new}\nb: 5e-5\n", "more.yaml")
    assert read_config([base, more]) == {"a": {"x": 1, "y": [4], "z": "new"}, "b": 5e-5}
    found = read_config([base, more], ["a.x=2", "--a.z=third", "c.d=[1,2]", "b=null"])
    assert found == {"a": {"x": 2, "y": [4], "z": "third"}, "b": None, "c": {"d": [1, 2]}}


def test_one_path_needs_no_list(write):
    path = write("a: 1")
    assert read_config(path) == read_config(str(path)) == {"a": 1}


def test_overrides_are_typed_as_in_yaml(write):
    given = ["i=3", "f=2e-4", "t=true", "s=text", "q='3'", "e=a=b"]
    found = read_config(write("{}"), given)
    assert found == {"i": 3, "f": 2e-4, "t": True, "s": "text", "q": "3", "e": "a=b"}
    assert type(found["t"]) is bool


def test_interpolations_are_resolved_after_the_overrides(write):
    path = write("size: 32\nunet: {size: '${size}', list: ['${size}']}\ncopy: ${unet}\n")
    found = read_config(path, ["size=8"])
    assert found["unet"] == found["copy"] == {"size": 8, "list": [8]}
    assert type(found) is type(found["unet"]) is dict
    assert type(found["unet"]["list"]) is list


def test_missing_files_are_all_told_with_the_nearest_names(write, tmp_path):
    write("a: 1", "churches.yaml")
    with pytest.raises(ConfigError) as caught:
        read_config([tmp_path / "church.yaml", tmp_path / "no" / "x.yaml", tmp_path])
    text = str(caught.value)
    assert "3 mistakes" in text
    assert "nearest there: churches.yaml" in text
    assert f"no folder {tmp_path / 'no'}" in text
    assert "a folder, not a file" in text


def test_a_folder_without_configurations(tmp_path):
    with pytest.raises(ConfigError, match="no YAML file is there"):
        read_config(tmp_path / "x.yaml")


def test_no_file_given():
    with pytest.raises(ConfigError, match="no configuration file"):
        read_config([])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 1: 2\n", "line 2: mapping values"),
        ("a: {x: 1\n", "line [12]"),
        ("a: 1\n\na: 2\n", "line 3: found duplicate key a"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: could not determine a constructor"),
        ("- 1\n- 2\n", "a list at the top"),
        ("42", "base.yaml"),
        ("a: \x00", "base.yaml"),
    ],
)
def test_malformed_files_tell_the_line(write, text, message):
    with pytest.raises(ConfigError, match=message):
        read_config(write(text))


def test_every_malformed_file_is_told(write):
    with pytest.raises(ConfigError, match="2 mistakes"):
        read_config([write("a: ["), write("b: ]", "more.yaml")])


@pytest.mark.parametrize("given", ["steps", "=3", "a..b=1", "a=[1,", "a=${"])
def test_malformed_overrides(write, given):
    with pytest.raises(ConfigError, match="in the overrides") as caught:
        read_config(write("a: 1"), [given, "b=2", "c"])
    assert "2 mistakes" in str(caught.value)


def test_an_override_that_does_not_fit(write):
    with pytest.raises(ConfigError, match="cannot be merged"):
        read_config(write("a: [1, 2]"), ["a.b=1"])


def test_every_value_that_leads_nowhere_is_told(write):
    path = write("a: ${no.such}\nb: {c: ['${gone}', 1]}\nd: ???\ne: ${loop}\nloop: ${e}\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    text = str(caught.value)
    assert "a: Interpolation key 'no.such' not found" in text
    assert "b.c.0:" in text
    assert "d: still ???" in text
    assert "e:" in text
    assert read_config(path, ["a=1", "b.c=[]", "d=2", "e=3"])["loop"] == 3
