"""Small denoisers for tests."""

import torch
from torch import nn


class Mixed(nn.Module):
    """Every kind of quantizable layer, strided, grouped and shared, on (B, 6, 8, 8)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv_in = nn.Conv2d(6, 12, 3, padding=1)
        self.time_mlp = nn.Linear(1, 12)
        self.grouped = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=3, bias=False)
        self.reflect = nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect")
        self.sequence = nn.Conv1d(12, 12, 3, padding=1, dilation=1)
        self.linear = nn.Linear(12, 12)
        self.up = nn.ConvTranspose2d(12, 12, 2, stride=2)
        self.conv_out = nn.Conv2d(12, 6, 1)

    def forward(self, x, timestep, gain=None):
        time = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1, 1) / 1000
        time = time.to(x.dtype)
        level = 1 + 3 * time.reshape(-1, 1, 1, 1)
        h = self.conv_in(x * level)
        h = h + self.time_mlp(time)[:, :, None, None]
        h = nn.functional.silu(self.grouped(h))
        h = self.reflect(h)
        s = nn.functional.gelu(self.sequence(h.flatten(2)))
        s = s + self.linear(s.transpose(1, 2)).transpose(1, 2)
        h = self.up(s.reshape(h.shape))
        return self.conv_out(h if gain is None else h * gain)


class Blocks(nn.Module):
    """Norm, SiLU and convolution in a row, attention's transposed rows, odd channel counts."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv_in = nn.Conv2d(3, 20, 3, padding=1)
        self.norm = nn.GroupNorm(4, 20)
        self.conv1 = nn.Conv2d(20, 21, 3, padding=1)
        self.down = nn.Conv2d(21, 24, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, 24)
        self.query = nn.Linear(24, 24)
        self.conv2 = nn.Conv2d(24, 24, 3, padding=1, groups=2)
        self.skip = nn.Conv2d(24, 18, 1)
        self.wide = nn.Conv2d(18, 17, (3, 2), padding="same", dilation=2)
        self.conv_out = nn.Conv2d(17, 3, 3, padding=1)

    def forward(self, x, t):
        level = 1 + 2 * torch.as_tensor(t).float().reshape(-1, 1, 1, 1) / 1000
        level = level.to(x.dtype)
        h = nn.functional.silu(self.norm(self.conv_in(x * level)))
        h = self.conv1(nn.functional.dropout(h, 0.1, self.training))
        h = self.down(h)
        rows = self.norm2(h).flatten(2).transpose(1, 2)
        h = h + self.query(rows).transpose(1, 2).unflatten(2, h.shape[2:])
        h = self.skip(h + self.conv2(nn.functional.silu(self.norm2(h))))
        return self.conv_out(self.wide(h))


class Plain(nn.Module):
    """Two linear layers and a timestep argument of an unusual name."""

    def __init__(self, zero: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(4, 16)
        self.b = nn.Linear(16, 4)
        if zero:
            nn.init.zeros_(self.a.weight)

    def forward(self, x, when):
        return self.b(nn.functional.silu(self.a(x)))


def calls(count: int = 12, batch: int = 4, shape=(6, 8, 8), seed: int = 0, mixed: bool = False):
    rng = torch.Generator().manual_seed(seed)
    for i in range(count):
        x = torch.randn(batch, *shape, generator=rng)
        t = torch.tensor(i * 999 // max(count - 1, 1))
        yield x, (torch.randint(0, 1000, (batch,), generator=rng) if mixed else t)


class Asking(nn.Module):
    """Asks its layers what models ask theirs: the type to cast to, the width, the weight itself.
    All that is cast lies below 1, where a type of whole numbers leaves nothing of it.
    """

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv_in = nn.Conv2d(6, 16, 3, padding=1)
        self.time = nn.Linear(8, 16)
        self.inner = nn.Linear(16, 16)
        self.read = nn.Linear(16, 16, bias=False)
        self.conv_out = nn.Conv2d(16, 6, 3, padding=1)

    def forward(self, x, t):
        times = torch.as_tensor(t, device=x.device).reshape(-1, 1) / 1000
        times = times.expand(-1, self.time.in_features)
        times = times.to(next(iter(self.time.parameters())).dtype)
        h = self.conv_in(input=x) + self.time(times)[:, :, None, None]
        rows = h.flatten(2).transpose(1, 2).sigmoid()
        rows = rows + self.inner(rows.to(self.inner.weight.dtype))
        rows = rows + self.read(rows.sigmoid().to(self.read.weight.dtype))
        rows = rows + nn.functional.linear(rows, self.read.weight)
        return self.conv_out(rows.transpose(1, 2).reshape(h.shape))


class Wide(nn.Module):
    """Equal square linear layers in a row on (B, width): nearly all bytes are their weights."""

    def __init__(self, width=256, depth=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))

    def forward(self, x, timestep):
        x = x * (1 + torch.as_tensor(timestep).to(x.dtype).reshape(-1, 1) / 1000)
        for layer in self.layers:
            x = x + layer(x)
        return x


class Video(nn.Module):
    """Convolutions of (B, 4, 3, 6, 6): causal over frames, grouped, and over a concatenation."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv_in = nn.Conv3d(4, 6, 3, padding=1)
        self.time_mlp = nn.Linear(1, 6)
        self.frames = nn.Conv3d(6, 6, (3, 1, 1), padding=(1, 0, 0), groups=2, bias=False)
        self.both = nn.Conv3d(12, 6, 3, padding=(0, 1, 1))
        self.conv_out = nn.Conv3d(6, 4, 1)

    def forward(self, x, t):
        time = torch.as_tensor(t).float().reshape(-1, 1) / 1000
        h = self.conv_in(x) + self.time_mlp(time)[:, :, None, None, None]
        past = nn.functional.pad(h, (0, 0, 0, 0, 2, 0), mode="replicate")
        frames = nn.functional.silu(self.frames(past))
        return self.conv_out(self.both(torch.cat([40 * past, frames], 1)))
