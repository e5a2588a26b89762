from tdquant.files.shapes import GAP, NUMBER, mistakes


def test_every_mistake_has_its_place():
    shape = {"a": [NUMBER], "b?": str, "c": GAP}
    assert mistakes({"a": [1, 2.5], "c": None}, shape) == []
    assert mistakes({"a": [1, float("nan")]}, shape) == ["a[1] is not a number"]
    assert mistakes({"a": [True], "b": 1, "c": float("nan")}, shape) == [
        "a[0] is not a number",
        "b is not text",
    ]
    assert mistakes([], shape) == ["the file is not an object"]
