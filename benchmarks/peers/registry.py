"""The table of quantizers, in the order of the results."""

from benchmarks.peers.nncf import NNCF, InGraphs, NNCFCorrected
from benchmarks.peers.ours import (
    BySize,
    Default,
    Edges,
    InPyTorch,
    Linear,
    Reconstructed,
    Static,
    Tried,
)
from benchmarks.peers.peer import Peer
from benchmarks.peers.quanto import Quanto
from benchmarks.peers.sdnq import SDNQ, SDNQRotated, SDNQWeights
from benchmarks.peers.torchao import TorchAO, TorchAOInt4

PEERS: tuple[type[Peer], ...] = (
    InPyTorch,
    InGraphs,
    Default,
    Tried,
    Edges,
    BySize,
    Static,
    Reconstructed,
    Linear,
    SDNQ,
    SDNQRotated,
    SDNQWeights,
    NNCF,
    NNCFCorrected,
    TorchAO,
    TorchAOInt4,
    Quanto,
)
