"""Run by Python of an environment with optimum-intel and without tdquant: opens an exported
folder, and writes what it draws.

    python optimum_draws.py FOLDER CALL.json PICTURES.npy
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import torch
from optimum.intel import OVDiffusionPipeline


def main(folder, call, out):
    assert importlib.util.find_spec("tdquant") is None
    pipe = OVDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"output_type": "pt", **json.loads(Path(call).read_text())}
    pictures = pipe(**arguments, generator=torch.Generator().manual_seed(0), return_dict=False)[0]
    np.save(out, pictures.numpy())
    print(type(pipe).__name__)


main(*sys.argv[1:])
