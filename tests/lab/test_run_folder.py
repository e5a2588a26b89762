"""Folders of training runs that are damaged."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tdquant.errors import StorageError
from tdquant.lab.run_folder import RunFolder


def test_a_first_stage_that_cannot_be_read_or_is_another(tmp_path):
    file = tmp_path / "first_stage.safetensors"
    file.write_bytes(b"\0" * 3)
    with pytest.raises(StorageError, match="cannot be read"):
        RunFolder(tmp_path).fill_first_stage(nn.Linear(2, 2))
    save_file({"other": torch.ones(2)}, file)
    with pytest.raises(StorageError, match="another first stage"):
        RunFolder(tmp_path).fill_first_stage(nn.Linear(2, 2))
