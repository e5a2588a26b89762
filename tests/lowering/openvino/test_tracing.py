import pytest
import torch

import tdquant as tdq

pytest.importorskip("openvino")


def test_an_export_reports_to_nobody(calibrated, x, tmp_path, monkeypatch):
    """OpenVINO's converter sends telemetry by some thirty forks of the process."""
    telemetry = pytest.importorskip("openvino_telemetry")
    sent = []

    class Telemetry:
        def __getattr__(self, name):
            return lambda *args, **kwargs: sent.append(name)

    monkeypatch.setattr(telemetry, "Telemetry", lambda *args, **kwargs: Telemetry())
    tdq.export(tdq.freeze(calibrated), tmp_path / "model.xml", example=(x, torch.tensor(500)))
    assert sent == []
