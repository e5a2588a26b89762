"""The published arithmetic, written down once more from a state dict with published names: plain
functions over tensors, float or with the quantized layers of TDQ's authors. Nothing of tdquant.
"""

import math

import torch
import torch.nn.functional as F

SILU_OFFSET = -0.2785


def features(t, width):
    half = width // 2
    w = torch.exp(-math.log(10000) * torch.arange(0, half, dtype=torch.float32) / half)
    angle = t[:, None].float() * w[None]
    out = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
    return torch.cat([out, torch.zeros(len(t), 1)], dim=-1) if width % 2 else out


class UNet:
    """``UNet(config, state)(x, t, context, y)``, t of shape (B,)."""

    def __init__(self, config, state):
        self.c, self.s = dict(config), state

    # ---- layers -----------------------------------------------------------------------------
    def weight(self, path):
        w = self.s[path + ".weight"]
        n = int(self.s.get(path + ".n_lv", 0))
        if not n:
            return w
        s, q = self.s[path + ".s"], n // 2 - 1
        return torch.round(torch.clip(w / s, -q, q)) * s

    def activation(self, path, x):
        n = int(self.s.get(path + ".act_func.n_lv", 0))
        if not n:
            return x
        step = self.s[path + ".act_func.s"]
        if bool(self.s[path + ".act_func.dynamic"]):
            h = self.time
            for i in (0, 2, 4, 7):
                name = f"{path}.act_func.tdq_module.s_gen.{i}"
                h = F.linear(h, self.s[name + ".weight"], self.s[name + ".bias"])
                h = F.relu(h) if i < 7 else F.softplus(h)
            step = h.reshape(-1, *[1] * (x.ndim - 1))
        if path.endswith(("in_layers.2", "out_layers.3")):
            return torch.round(torch.clip((x - SILU_OFFSET) / step, 0, n - 1)) * step + SILU_OFFSET
        q = n // 2 - 1
        return torch.round(torch.clip(x / step, -q, q)) * step

    def conv(self, path, x, stride=1):
        w = self.weight(path)
        f = {3: F.conv1d, 4: F.conv2d}[w.ndim]
        x = self.activation(path, x)
        return f(x, w, self.s[path + ".bias"], stride=stride, padding=w.shape[-1] // 2)

    def linear(self, path, x):
        return F.linear(self.activation(path, x), self.weight(path), self.s.get(path + ".bias"))

    def norm(self, path, x, eps=1e-5):
        return F.group_norm(x, 32, self.s[path + ".weight"], self.s[path + ".bias"], eps)

    # ---- blocks -----------------------------------------------------------------------------
    def resample(self, x, way):
        if way == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return (F.avg_pool2d if x.ndim == 4 else F.avg_pool1d)(x, 2, 2)

    def residual(self, path, x, way=None):
        h = F.silu(self.norm(path + ".in_layers.0", x))
        if way:
            h, x = self.resample(h, way), self.resample(x, way)
        h = self.conv(path + ".in_layers.2", h)
        e = self.linear(path + ".emb_layers.1", F.silu(self.emb))
        e = e.reshape(*e.shape, *[1] * (x.ndim - 2))
        if self.c.get("use_scale_shift_norm"):
            scale, shift = torch.chunk(e, 2, dim=1)
            h = self.norm(path + ".out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(path + ".out_layers.0", h + e)
        h = self.conv(path + ".out_layers.3", F.silu(h))
        if path + ".skip_connection.weight" in self.s:
            x = self.conv(path + ".skip_connection", x)
        return x + h

    def heads(self, channels, up):
        count, width = self.c.get("num_heads", -1), self.c.get("num_head_channels", -1)
        if self.c.get("use_spatial_transformer"):
            count = count if width == -1 else channels // width
            wide = channels // count if self.c.get("legacy", True) or width == -1 else width
            return count, wide
        if width != -1:
            return channels // width, width
        other = self.c.get("num_heads_upsample", -1)
        if up and other != -1 and self.c.get("legacy", True):
            count = other
        return count, channels // count

    def attention(self, path, x, up):
        heads, width = self.heads(x.shape[1], up)
        b, c, *_ = x.shape
        flat = x.reshape(b, c, -1)
        qkv = self.conv(path + ".qkv", self.norm(path + ".norm", flat))
        n = qkv.shape[-1]
        if self.c.get("use_new_attention_order"):
            q, k, v = qkv.reshape(b, 3, heads, width, n).unbind(1)
        else:
            q, k, v = qkv.reshape(b, heads, 3, width, n).unbind(2)
        q, k, v = (z.reshape(b * heads, width, n) for z in (q, k, v))
        r = 1 / math.sqrt(math.sqrt(width))
        p = torch.softmax(torch.einsum("bct,bcs->bts", q * r, k * r), dim=-1)
        a = torch.einsum("bts,bcs->bct", p, v).reshape(b, -1, n)
        return (flat + self.conv(path + ".proj_out", a)).reshape(x.shape)

    def cross(self, path, x, context, heads):
        q, k, v = (
            self.linear(f"{path}.to_{n}", z) for n, z in (("q", x), ("k", context), ("v", context))
        )
        width = q.shape[-1] // heads
        out = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            p = torch.softmax(q[..., part] @ k[..., part].mT * width**-0.5, dim=-1)
            out.append(p @ v[..., part])
        return self.linear(path + ".to_out.0", torch.cat(out, dim=-1))

    def transformer(self, path, x, up):
        heads, _ = self.heads(x.shape[1], up)
        h = self.conv(path + ".proj_in", self.norm(path + ".norm", x, 1e-6))
        tokens = h.flatten(2).mT
        for i in range(self.c.get("transformer_depth", 1)):
            block = f"{path}.transformer_blocks.{i}"

            def norm(n, z, block=block):
                name = f"{block}.norm{n}"
                return F.layer_norm(
                    z, z.shape[-1:], self.s[name + ".weight"], self.s[name + ".bias"]
                )

            z = norm(1, tokens)
            tokens = self.cross(block + ".attn1", z, z, heads) + tokens
            tokens = self.cross(block + ".attn2", norm(2, tokens), self.context, heads) + tokens
            value, gate = self.linear(block + ".ff.net.0.proj", norm(3, tokens)).chunk(2, -1)
            tokens = self.linear(block + ".ff.net.2", value * F.gelu(gate)) + tokens
        return self.conv(path + ".proj_out", tokens.mT.reshape(h.shape)) + x

    def attend(self, path, x, up=False):
        kind = self.transformer if self.c.get("use_spatial_transformer") else self.attention
        return kind(path, x, up)

    def stage(self, path, x, attended, up=False):
        """A residual block and its attention; the number of layers."""
        x = self.residual(path + ".0", x)
        return (self.attend(path + ".1", x, up), 2) if attended else (x, 1)

    def change(self, path, x, way):
        if self.c.get("resblock_updown"):
            return self.residual(path, x, way)
        if not self.c.get("conv_resample", True):
            return self.resample(x, way)
        if way == "down":
            return self.conv(path + ".op", x, stride=2)
        return self.conv(path + ".conv", self.resample(x, "up"))

    def __call__(self, x, t, context=None, y=None):
        s, c = self.s, self.c
        self.context = context
        self.time = features(t, c["model_channels"])
        self.emb = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", self.time)))
        if y is not None:
            self.emb = self.emb + s["label_emb.weight"][y]
        levels = len(c.get("channel_mult", (1, 2, 4, 8)))
        h, skips, i = self.conv("input_blocks.0.0", x), [], 1
        skips.append(h)
        for level in range(levels):
            for _ in range(c["num_res_blocks"]):
                h, _ = self.stage(f"input_blocks.{i}", h, 2**level in c["attention_resolutions"])
                skips.append(h)
                i += 1
            if level < levels - 1:
                h = self.change(f"input_blocks.{i}.0", h, "down")
                skips.append(h)
                i += 1
        h = self.residual("middle_block.0", h)
        h = self.residual("middle_block.2", self.attend("middle_block.1", h))
        i = 0
        for level in reversed(range(levels)):
            for j in range(c["num_res_blocks"] + 1):
                path = f"output_blocks.{i}"
                h = torch.cat([h, skips.pop()], dim=1)
                h, n = self.stage(path, h, 2**level in c["attention_resolutions"], up=True)
                if level and j == c["num_res_blocks"]:
                    h = self.change(f"{path}.{n}", h, "up")
                i += 1
        if c.get("n_embed"):
            return self.conv("id_predictor.1", self.norm("id_predictor.0", h))
        return self.conv("out.2", F.silu(self.norm("out.0", h)))


class FirstStage:
    """The encoder and decoder of a first stage: ``encode(x)`` -> moments, ``decode(z)``."""

    def __init__(self, net, state):
        self.net, self.s = net, state
        self.levels = len(net["ch_mult"])

    def conv(self, path, x, stride=1, padding=None):
        w = self.s[path + ".weight"]
        padding = w.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, w, self.s[path + ".bias"], stride=stride, padding=padding)

    def silu_norm(self, path, x):
        x = self.norm(path, x)
        return x * torch.sigmoid(x)

    def norm(self, path, x):
        return F.group_norm(x, 32, self.s[path + ".weight"], self.s[path + ".bias"], 1e-6)

    def residual(self, path, x):
        h = self.conv(path + ".conv1", self.silu_norm(path + ".norm1", x))
        h = self.conv(path + ".conv2", self.silu_norm(path + ".norm2", h))
        if path + ".nin_shortcut.weight" in self.s:
            x = self.conv(path + ".nin_shortcut", x)
        return x + h

    def attention(self, path, x):
        if path + ".q.weight" not in self.s:
            return x
        h = self.norm(path + ".norm", x)
        q, k, v = (self.conv(f"{path}.{n}", h).flatten(2) for n in "qkv")
        p = torch.softmax(q.mT @ k * q.shape[1] ** -0.5, dim=2)
        return x + self.conv(path + ".proj_out", (v @ p.mT).reshape(x.shape))

    def middle(self, side, h):
        h = self.attention(side + ".mid.attn_1", self.residual(side + ".mid.block_1", h))
        return self.residual(side + ".mid.block_2", h)

    def encode(self, x):
        h = self.conv("encoder.conv_in", x)
        for i in range(self.levels):
            for j in range(self.net["num_res_blocks"]):
                h = self.residual(f"encoder.down.{i}.block.{j}", h)
                h = self.attention(f"encoder.down.{i}.attn.{j}", h)
            if i < self.levels - 1:
                h = F.pad(h, (0, 1, 0, 1))
                h = self.conv(f"encoder.down.{i}.downsample.conv", h, stride=2, padding=0)
        h = self.silu_norm("encoder.norm_out", self.middle("encoder", h))
        return self.conv("quant_conv", self.conv("encoder.conv_out", h))

    def nearest(self, z):
        codes = self.s["quantize.embedding.weight"]
        flat = z.movedim(1, -1)
        distance = (flat[..., None, :] - codes).square().sum(-1)
        return codes[distance.argmin(-1)].movedim(-1, 1)

    def decode(self, z):
        z = self.nearest(z) if "quantize.embedding.weight" in self.s else z
        h = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", z)))
        for i in reversed(range(self.levels)):
            for j in range(self.net["num_res_blocks"] + 1):
                h = self.residual(f"decoder.up.{i}.block.{j}", h)
                h = self.attention(f"decoder.up.{i}.attn.{j}", h)
            if i:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
                h = self.conv(f"decoder.up.{i}.upsample.conv", h)
        return self.conv("decoder.conv_out", self.silu_norm("decoder.norm_out", h))
