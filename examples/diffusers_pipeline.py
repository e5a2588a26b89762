"""A pipeline of diffusers, from float to quantized and back from disk.

    python examples/diffusers_pipeline.py my-pipeline --prompts "a cat" "a lighthouse" --steps 20
    python examples/diffusers_pipeline.py               # a tiny pipeline, made in place

Every denoiser of the pipeline is quantized and calibrated from the calls that the pipeline makes
for the prompts, and frozen. The pipeline is saved, loaded as any other, and run.

Printed are, for each denoiser, what calibration chose; the mean squared difference between the
images of the quantized and of the float pipeline; and that the loaded pipeline gives the same
images as the one that was saved.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline, UNet2DModel

import tdquant as tdq


def tiny_pipeline() -> DDIMPipeline:
    """An unconditional pipeline with random weights."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    return DDIMPipeline(unet, DDIMScheduler())


def images(pipe, prompts: list[str], steps: int) -> torch.Tensor:
    """One image a prompt, or two without prompts, from fixed noise."""
    what = {"prompt": prompts} if prompts else {"batch_size": 2}
    generator = torch.Generator().manual_seed(0)
    made = pipe(**what, num_inference_steps=steps, generator=generator, output_type="np").images
    return torch.as_tensor(made)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", nargs="?", help="folder of a pipeline (default: make one)")
    parser.add_argument("--prompts", nargs="+", default=[], help="none for an unconditional one")
    parser.add_argument("--steps", type=int, default=20, help="sampler steps (default: 20)")
    parser.add_argument("--out", type=Path, help="folder to write (default: a temporary one)")
    parser.add_argument("--tiny", action="store_true", help="four steps and a quick calibration")
    args = parser.parse_args()

    steps = 4 if args.tiny else args.steps
    pipe = DiffusionPipeline.from_pretrained(args.pipeline) if args.pipeline else tiny_pipeline()
    pipe.set_progress_bar_config(disable=args.tiny)
    exact = images(pipe, args.prompts, steps)

    with tempfile.TemporaryDirectory() as folder:
        calls = tdq.trajectories(pipe, args.prompts or 2, steps=steps, progress=not args.tiny)
        calls = calls.save(Path(folder) / "calls")
        parts = tdq.denoisers(pipe)
        for name, model in parts.items():
            tdq.quantize(model, tdq.Recipe(weights=4, activations=8))
            print(name, tdq.calibrate(model, calls[name], progress=not args.tiny).tdq.calibration)
        for name, model in parts.items():
            setattr(pipe, name, tdq.freeze(model))
        out = args.out or Path(folder) / "quantized"
        pipe.save_pretrained(out)
        again = DiffusionPipeline.from_pretrained(out)
    again.set_progress_bar_config(disable=args.tiny)
    found = images(pipe, args.prompts, steps)
    print(f"mean squared difference {(found - exact).square().mean():.2e}")
    print(f"loaded, the same images: {torch.equal(images(again, args.prompts, steps), found)}")


if __name__ == "__main__":
    main()
