"""Deploys a quantized model: one file for another engine, with the timestep as an input of it.

    python examples/deploy_onnx.py                      # quantizes cats-ddpm, writes cats.onnx
    python examples/deploy_onnx.py cats-w4a8 --out cats.xml
                                                        # a folder of tdq.save, for OpenVINO

The scale tables are in the graph, so one file serves every sampler and number of steps, and
batches that mix timesteps. The session stands where the model stood.

Printed are the layers that multiply integers, the largest difference between a call of the
session and of the frozen model, the size of the file, and the milliseconds of a call.
"""

import argparse
import copy
from pathlib import Path

import torch
from torch import nn

import tdquant as tdq
from tdquant.lowering.backends import time_calls


def quantized(pipe, steps: int) -> nn.Module:
    """The pipe's denoiser at W4A8, frozen."""
    recipe = tdq.Recipe(weights=4, activations=8)
    model = tdq.quantize(copy.deepcopy(pipe.unet), recipe)
    tdq.calibrate(model, tdq.trajectories(pipe, 4, steps=steps), progress=False)
    return tdq.freeze(model)


def tiny_pipe():
    """A UNet of four convolutions in the place of the cats model."""
    from diffusers import DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        norm_num_groups=4,
    )
    return tdq.models.Pipe(unet.eval(), None, DDIMScheduler(), (3, 8, 8), "tiny")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="folder of tdq.save (default: make one)")
    parser.add_argument("--out", default="cats.onnx", help="file, .onnx or .xml (OpenVINO)")
    parser.add_argument("--threads", type=int, default=0, help="of the engine")
    parser.add_argument("--tiny", action="store_true", help="a very small model")
    args = parser.parse_args()

    pipe = tiny_pipe() if args.tiny else tdq.models.load_embedded("cats-ddpm")
    frozen = tdq.load(args.model) if args.model else quantized(pipe, 4 if args.tiny else 50)
    x, t = torch.randn(1, *pipe.shape), torch.tensor(500)
    file = tdq.export(frozen, args.out, example=(x, t))
    session = tdq.open_session(file, threads=args.threads)
    print(tdq.summary(session))

    images = torch.randn(3, *pipe.shape)
    times = torch.tensor([999, 500, 0])  # one for each image
    with torch.no_grad():
        exact = frozen(images, times)
    exact = getattr(exact, "sample", exact)
    found = session(images, times)
    error = (getattr(found, "sample", found) - exact).abs().max() / exact.abs().max()
    weights = file.with_suffix(".bin")  # beside an .xml
    size = file.stat().st_size + (weights.stat().st_size if weights.exists() else 0)
    seconds = time_calls({"frozen": frozen, "session": session}, (x, t))
    print(f"{Path(file).name}: {size / 1e6:.2f} MB, largest difference {error:.1e} of the output")
    print(", ".join(f"{name} {1000 * s:.1f} ms a call" for name, s in seconds.items()))


if __name__ == "__main__":
    main()
