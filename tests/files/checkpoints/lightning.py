"""Checkpoint files as Lightning 1.4 writes them, where Lightning is not installed."""

import sys
import types
from collections import OrderedDict

import torch

CALLBACK = "pytorch_lightning.callbacks.model_checkpoint"


def write_lightning(path, state, **options):
    """Writes a state dict as ``trainer.save_checkpoint`` does, keyed by the class of a callback.

    The class exists while the file is written only: whoever unpickles the file by Python's own
    means has to import a package that is not there.
    """
    packages = ["pytorch_lightning", "pytorch_lightning.callbacks", CALLBACK]
    made = {name: types.ModuleType(name) for name in packages}
    kind = type("ModelCheckpoint", (), {"__module__": CALLBACK})
    made[CALLBACK].ModelCheckpoint = kind
    assert not set(made) & set(sys.modules)
    sys.modules.update(made)
    state = OrderedDict(state)
    state._metadata = OrderedDict({"": {"version": 1}})
    try:
        torch.save(
            {
                "epoch": 432,
                "global_step": 500000,
                "pytorch-lightning_version": "1.4.2",
                "state_dict": state,
                "callbacks": {
                    kind: {
                        "monitor": "val/loss_simple_ema",
                        "best_model_score": torch.tensor(0.1),
                        "best_model_path": "logs/epoch=000432.ckpt",
                        "instance": kind(),
                    }
                },
                "optimizer_states": [
                    {"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}, "param_groups": []}
                ],
                "lr_schedulers": [{"base_lrs": [5e-5], "_step_count": 5}],
            },
            path,
            **options,
        )
    finally:
        for name in made:
            del sys.modules[name]
    return path
