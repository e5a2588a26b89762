import pytest

from tests.lab.evaluation import small


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder and the record of a finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDQUANT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        out = tmp_path_factory.mktemp("evaluate") / "run"
        return out, small.run(out)
