"""Quantization-aware training in a loop of one's own, as diffusers' training scripts write it.

    python examples/train_with_accelerate.py
    accelerate launch --cpu --num_processes 2 examples/train_with_accelerate.py

The embedded cats model gets temporal scales and is trained on the diffusion loss by accelerate:
gradient checkpointing, accumulation, clipping, several processes, mixed precision, and diffusers'
moving average, which is frozen and saved in OUT. ``tdq.train`` does all this in one call; this is
for scripts that are there already. What is new in the loop is marked.

Printed is the mean loss before and after, by the main process.
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

import tdquant as tdq
from tdquant.training import parameter_groups


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="of training (default: 200)")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--out", default="cats-accelerate", help="folder of the frozen model")
    parser.add_argument("--tiny", action="store_true", help="an untrained model, three steps")
    args = parser.parse_args()
    steps, batch = (3, 4) if args.tiny else (args.steps, 16)
    accelerator = Accelerator(gradient_accumulation_steps=2, mixed_precision=args.precision)

    pipe = tdq.models.load_embedded("tiny" if args.tiny else "cats-ddpm")
    recipe = tdq.Recipe(weights=4, activations=4, scale="temporal")
    model = tdq.quantize(pipe.unet, recipe)  # new, with the line below
    tdq.calibrate(model, tdq.trajectories(pipe, 2, steps=10), progress=not args.tiny)
    model.unet.enable_gradient_checkpointing()

    cats = tdq.data.Cats("train", count=64 if args.tiny else 10_000, size=pipe.shape[-1])
    loader = DataLoader(cats, batch, shuffle=True, drop_last=True)
    schedule = DDPMScheduler()
    optimizer = torch.optim.AdamW(parameter_groups(model, rate=1e-4))  # new: decay spares steps
    ema = EMAModel(model.parameters(), decay=0.98)
    model, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)

    losses: list[float] = []
    while len(losses) < steps:
        for images in loader:
            noise = torch.randn_like(images)
            t = torch.randint(0, schedule.config.num_train_timesteps, (len(images),))
            t = t.to(images.device)
            with accelerator.accumulate(model):
                predicted = model(schedule.add_noise(images, noise, t), t)
                loss = F.mse_loss(predicted.float(), noise)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                ema.step(model.parameters())
                losses.append(accelerator.reduce(loss.detach(), "mean").item())
            if len(losses) == steps:
                break

    model = accelerator.unwrap_model(model).eval()
    ema.copy_to(model.parameters())
    if accelerator.is_main_process:
        few = max(1, steps // 10)
        print(f"loss: {sum(losses[:few]) / few:.4f} before, {sum(losses[-few:]) / few:.4f} after")
        print(f"saved: {tdq.save(tdq.freeze(model), args.out)}")  # new
    accelerator.end_training()


if __name__ == "__main__":
    main()
