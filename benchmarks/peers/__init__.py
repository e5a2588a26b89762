"""tdquant beside other quantizers: one table of error, size and time from one command.

    python -m benchmarks.peers --models cats-ddpm cats-ldm --bits W8A8 W5A8 W4A8 W8A5

All quantize the same float model, calibrate (those that do) on the same calls, and are sampled
from the same noise. A quantizer is a subclass of ``Peer`` in a file here and a row of
``registry.PEERS``.
"""
