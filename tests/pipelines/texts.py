"""Tiny pipelines with the text encoders and tokenizers that their kind has: what a folder from a
hub holds. Each function gives a pipeline and the arguments of one call, a prompt among them.
"""

from tests.pipelines import transformers, unets, videos
from tests.pipelines.parts import clip, t5

_EMBEDDINGS = ("prompt_embeds", "prompt_attention_mask")


def _with(made, **parts):
    """A pipeline with other parts, called with a prompt in the place of its embeddings."""
    pipe, call = made
    given = {n: v for n, v in call.items() if not n.endswith(_EMBEDDINGS)}
    components = {**pipe.components, **parts}
    return type(pipe)(**components), {**given, "prompt": "a cat"}


def _named(**pairs):
    """Encoders and tokenizers under the names of their slots: ``_2=clip()``."""
    names = {"one": "", "two": "_2", "three": "_3"}
    return {
        f"{kind}{names[slot]}": part
        for slot, pair in pairs.items()
        for kind, part in zip(("text_encoder", "tokenizer"), pair, strict=True)
    }


def stable_diffusion_1():
    return unets.stable_diffusion_1()


def latent_consistency():
    return unets.latent_consistency()


def stable_diffusion_xl():
    texts = _named(one=clip(8), two=clip(8, projection=16))
    return _with(unets.stable_diffusion_xl(), **texts)


def stable_diffusion_3():
    texts = _named(one=clip(4, projection=4), two=clip(8, projection=6), three=t5())
    pipe, call = _with(transformers.stable_diffusion_3(), **texts)
    return pipe, {**call, "max_sequence_length": 10}


def flux():
    pipe, call = _with(transformers.flux(), **_named(one=clip(10), two=t5()))
    return pipe, {**call, "max_sequence_length": 10}


def ltx():
    pipe, call = _with(videos.ltx(), **_named(one=t5()))
    return pipe, {**call, "max_sequence_length": 10, "output_type": "pt"}


WHOLE = {
    make.__name__: make
    for make in (
        stable_diffusion_1, stable_diffusion_xl, latent_consistency, stable_diffusion_3, flux, ltx,
    )
}  # fmt: skip
