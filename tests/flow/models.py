"""Small networks whose data flow no name tells: each has layers ``a`` to ``z`` of no meaning."""

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 8


def embed(t, width=WIDTH):
    """Sines of a time ``()`` or ``(B,)``, as ``(1, width)`` or ``(B, width)``."""
    t = torch.as_tensor(t).reshape(-1, 1).float() / 100
    return torch.cat([(t * k).sin() + k for k in range(1, width + 1)], -1)


class Hidden(nn.Module):
    """A transformer's parts under names that say nothing, in no order: ``m`` reads the sample,
    ``a`` and ``k`` embed the time and a pooled text, ``c`` modulates, ``b`` gives the output.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.b = nn.Linear(WIDTH, 3)
        self.c = nn.Linear(WIDTH, 2 * WIDTH)
        self.a = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.k = nn.Linear(5, WIDTH)
        self.w = nn.Linear(4, WIDTH)
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.m = nn.Linear(3, WIDTH)

    def forward(self, x, t, text, pooled, size):
        emb = self.a(embed(t).to(x.dtype).expand(len(x), -1)) + self.k(pooled)
        buffer = x.new_zeros(len(x), x.shape[1] + text.shape[1], WIDTH)
        buffer[:, : x.shape[1]] = self.m(x)
        buffer[:, x.shape[1] :] += self.w(text)
        shift, scale = self.c(F.silu(emb)).unsqueeze(1).chunk(2, -1)
        h = buffer.float().mul_(1 + scale).add_(shift)
        h = h + self.q(F.layer_norm(h, (WIDTH,)).to(x.dtype))
        h = F.scaled_dot_product_attention(h, h, h)
        return (self.b(h[:, : x.shape[1]]) * size,)

    @staticmethod
    def call(batch=4, time=None, seed=0):
        rng = torch.Generator().manual_seed(seed)
        x, text = torch.randn(batch, 6, 3, generator=rng), torch.randn(batch, 5, 4, generator=rng)
        pooled = torch.randn(batch, 5, generator=rng)
        return {"x": x, "t": time, "text": text, "pooled": pooled, "size": 2}


class _Image(nn.Module):
    """Takes ``(B, 3, 4, 4)`` through ``self.middle`` on tokens ``(B, 16, WIDTH)`` whose level
    follows the time.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, WIDTH, 1), nn.Conv2d(WIDTH, 3, 1)
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, t):
        t = torch.as_tensor(t).reshape(-1, 1, 1).float()
        h = self.enter(x).flatten(2).transpose(1, 2) * (1 + t / 50)
        h = h + self.middle(h) / (1 + t / 50)
        return self.leave(h.transpose(1, 2).unflatten(2, (4, 4)))

    def mlp(self, h):
        return self.down(F.gelu(self.up(h)))

    @staticmethod
    def call(batch=4, time=None, seed=0):
        return torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(seed)), time


class BatchSecond(_Image):
    """Tokens in front of the batch."""

    def middle(self, h):
        return self.mlp(h.transpose(0, 1)).transpose(0, 1)


class Encoder(_Image):
    """torch's own layer in its default layout, which has tokens in front."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0)

    def middle(self, h):
        return self.layer(h.transpose(0, 1)).transpose(0, 1)


class Frames(_Image):
    """Rows of the image folded into the batch, behind the samples."""

    def middle(self, h):
        return self.mlp(h.reshape(-1, 4, WIDTH)).reshape(h.shape)


class FramesFirst(_Image):
    """Rows of the image folded into the batch, in front of the samples."""

    def middle(self, h):
        rows = h.unflatten(1, (4, 4)).transpose(0, 1)
        return (
            self.mlp(rows.reshape(-1, 4, WIDTH)).reshape(rows.shape).transpose(0, 1).flatten(1, 2)
        )


class Tokens(_Image):
    """All tokens of all samples in one list."""

    def middle(self, h):
        return self.mlp(h.reshape(-1, WIDTH)).reshape(h.shape)


class Experts(_Image):
    """Tokens of all samples, sorted to two experts by what is in them."""

    def middle(self, h):
        flat = h.reshape(-1, WIDTH)
        out = torch.zeros_like(flat)
        for mask, expert in ((flat[:, 0] > 0, self.up), (flat[:, 0] <= 0, self.down)):
            out[mask] = expert(flat[mask])
        return out.reshape(h.shape)


class Bare(_Image):
    """A vector without a batch in front, and a table that is the same in every call."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randn(16, WIDTH))
        self.place, self.level = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, t):
        t = torch.as_tensor(t).float()
        h = self.enter(x).flatten(2).transpose(1, 2)
        h = (
            h
            + self.place(self.table)
            + self.level(embed(t)[0] if t.ndim == 0 else embed(t)[:, None])
        )
        h = h + self.mlp(h)
        return self.leave(h.transpose(1, 2).unflatten(2, (4, 4)))


class Packed(_Image):
    """Tokens of all samples in one list, as many of each as its length says."""

    def forward(self, x, t, lengths):
        self.lengths = lengths.tolist()
        return super().forward(x, t)

    def middle(self, h):
        pieces = [row[:n] for row, n in zip(h, self.lengths, strict=True)]
        packed = self.mlp(torch.cat(pieces)).split(self.lengths)
        return torch.stack([F.pad(p, (0, 0, 0, h.shape[1] - len(p))) for p in packed])

    @staticmethod
    def call(batch=4, time=None, seed=0, lengths=(9, 7, 7, 9)):
        return *_Image.call(batch, time, seed), torch.tensor(lengths)
