"""The page: one file that asks for nothing, holds everything, and believes nothing it is told."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from tdquant.errors import StorageError
from tdquant.lab.report import page as pages
from tdquant.lab.report import report
from tdquant.lab.report.drawing import symbol
from tdquant.lab.report.pictures import Pictures, encode
from tests.lab.report.made_up import (
    MODELS,
    study,
    write_everything,
    write_progress,
    write_run,
    write_study,
)

VOID = {"img", "input", "link", "meta", "br"}


class Outline(HTMLParser):
    """Elements in order, and that every one of them is closed where it has to be."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def named(self, *names):
        return [(name, found) for name, found in self.elements if name in names]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder = write_everything(tmp_path_factory.mktemp("report"))
    path = report([folder / "studies", folder / "runs"], folder / "report.html")
    return path.read_text()


def test_the_page_is_whole_and_small(everything):
    outline = Outline(everything)
    words = " ".join(outline.words)
    assert len(everything.encode()) < pages.LIMIT
    for each in ("holds in part", "not finished", "1 run in progress", "Quality against size",
                 "Samples as steps get fewer", "sampling: 1\u202f280 of 5\u202f000",
                 "tdquant evaluate models/W4A4-temporal"):  # fmt: skip
        assert each in words


def test_the_page_asks_for_nothing(everything):
    for name, found in Outline(everything).elements:
        for key in ("src", "href", "data", "action", "poster", "srcset"):
            assert re.match("data:image/|#|$", found.get(key) or ""), (name, found)
        assert not any(key.startswith("on") or key == "style" for key in found)
    assert "url(" not in everything
    assert "@import" not in everything


def test_the_policy_knows_style_and_script(everything):
    policy = next(f["content"] for _, f in Outline(everything).named("meta") if "http-equiv" in f)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        text = re.search(f"<{tag}>(.*?)</{tag}>", everything, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_every_mark_of_a_plot_is_on_the_page(everything):
    elements = Outline(everything).elements
    shapes = {f["id"]: f["d"] for _, f in elements if f.get("id", "").startswith("mark-")}
    assert set(shapes) == {symbol(hue) for hue in range(-1, 20)}
    assert len(set(shapes.values())) == len(shapes)
    used = {found["href"][1:] for name, found in elements if name == "use"}
    assert len(used) >= 4
    assert used <= set(shapes)


def test_ids_are_unique_and_links_lead_somewhere(everything):
    elements = Outline(everything).elements
    ids = [found["id"] for _, found in elements if "id" in found]
    assert len(ids) == len(set(ids))
    for _, found in elements:
        for key in ("aria-labelledby", "for"):
            assert found.get(key, ids[0]) in ids
        if found.get("href", "").startswith("#"):
            assert found["href"][1:] in ids


def test_headings_descend_one_level_at_a_time(everything):
    levels = [int(name[1]) for name, _ in Outline(everything).named("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_a_matrix_has_a_cell_for_every_part_and_model(everything):
    table = re.search(r'<table class="matrix">.*?</table>', everything, re.S)[0]
    rows = re.findall(r'<tr><th scope="row">.*?</tr>', table, re.S)
    cells = [re.findall(r"<td.*?</td>", row, re.S) for row in rows]
    assert [len(row) for row in cells] == [3, 3, 3]
    text = [[" ".join(re.sub("<.*?>", " ", cell).split()) for cell in row] for row in cells]
    assert text[0] == [
        "holds 0.420 0.315–0.550 W4A4, against LSQ, of 2",
        "does not hold 1.300 1.100–1.500 W8A8, against PACT",
        "not run",
    ]
    assert text[1][:2] == ["not decided 0.9 one training", "–"]
    assert text[2] == ["not run"] * 3
    assert re.findall(r'scope="rowgroup".*?<span>(.*?)</span>', table) == [
        "1. It trains", "2. It is free",
    ]  # fmt: skip


def test_a_hostile_name_is_text(tmp_path):
    model = {"name": HOSTILE, "bits": HOSTILE, "scale": HOSTILE}
    write_run(tmp_path / "a", MODELS[4], 2, model=model, command=HOSTILE)
    write_run(tmp_path / "b", MODELS[3], 2, machine={"processor": HOSTILE})
    tables = study()["tables"]
    tables[0]["columns"][0]["label"] = tables[0]["rows"][0]["method"] = HOSTILE
    plots = study()["plots"]
    plots[0]["lines"][0]["name"] = plots[0]["x"]["label"] = HOSTILE
    write_study(tmp_path / "s", title=HOSTILE, question=HOSTILE, tables=tables, plots=plots)
    made = report([tmp_path], tmp_path / "r.html", title=HOSTILE).read_text()
    outline = Outline(made)
    assert HOSTILE not in made
    assert made.count("alert(1)") > 10
    for name, found in outline.named("script", "img"):
        assert name != "script" or found in ({}, {"type": "application/json"})
        assert name != "img" or found["src"].startswith("data:image/png;base64,")


def test_pictures_shrink_until_the_page_fits(tmp_path, monkeypatch):
    write_run(tmp_path / "run", MODELS[3], pictures=8, with_layers=False, size=128)
    full = report(tmp_path / "run", tmp_path / "full.html").stat().st_size
    monkeypatch.setattr(pages, "LIMIT", full // 2)
    assert report(tmp_path / "run", tmp_path / "less.html").stat().st_size <= full // 2
    monkeypatch.setattr(pages, "LIMIT", 1000)
    with pytest.warns(UserWarning, match="fewer inputs"):
        report(tmp_path / "run", tmp_path / "large.html")


def test_a_run_in_progress_alone_is_a_page(tmp_path):
    write_progress(tmp_path / "run", done=0, of=0)
    assert "in progress" in report([tmp_path / "run"], tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("changed", "said"), [({"threads": 1}, "AMD EPYC, 2 cores"), ({"cores": 64}, "2 machines")]
)
def test_machines_are_told_apart_by_more_than_threads(changed, said, tmp_path):
    write_study(tmp_path / "a")
    write_study(tmp_path / "b", machine={**study()["machine"], **changed})
    page = report([tmp_path / "a", tmp_path / "b"], tmp_path / "r.html").read_text()
    assert ("2 machines" in page) == (said == "2 machines")
    assert said in page


def test_a_failure_leaves_the_old_page(tmp_path):
    (tmp_path / "r.html").write_text("old")
    write_run(tmp_path / "run", pictures=2)
    (tmp_path / "run" / "images" / "000001.png").write_bytes(b"no picture")
    with pytest.raises(StorageError, match="picture is damaged"):
        report([tmp_path / "run"], tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "old"


def test_pictures_of_two_sizes_are_no_sheet(tmp_path):
    write_run(tmp_path / "run", pictures=2)
    Image.new("RGB", (16, 16)).save(tmp_path / "run" / "images" / "000001.png")
    with pytest.raises(StorageError, match="different sizes"):
        report([tmp_path / "run"], tmp_path / "r.html")


@pytest.mark.parametrize("colours", [2, 300])
def test_pictures_are_encoded_without_loss(colours):
    draw = np.random.default_rng(0)
    palette = draw.integers(0, 256, (colours, 3), dtype=np.uint8)
    image = Image.fromarray(palette[draw.integers(0, colours, (40, 40))])
    back = Image.open(io.BytesIO(encode(image)))
    assert (np.asarray(back.convert("RGB")) == np.asarray(image)).all()
    plain = io.BytesIO()
    image.save(plain, "PNG")
    assert len(encode(image)) <= len(plain.getvalue())


def test_small_tiles_keep_their_pixels(tmp_path):
    strip = np.random.default_rng(0).integers(0, 256, (32, 96, 3), dtype=np.uint8)
    Image.fromarray(strip).save(tmp_path / "s.png")
    made = Pictures(0.25).strip(tmp_path / "s.png", 32)
    found = Image.open(io.BytesIO(base64.b64decode(made.src.partition("base64,")[2])))
    assert (np.asarray(found) == strip).all()
    assert (made.width, made.height) == (192, 64)
