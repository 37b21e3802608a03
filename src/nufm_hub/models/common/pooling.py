"""From what an encoder gives to the outputs of a head."""

from __future__ import annotations

from torch import Tensor, nn

from .configuration import DetectorConfig
from .outputs import EncoderOutput


class HeadLinear(nn.Linear):
    """A linear layer that starts close to zero, so that the first predictions are neutral."""


class PooledHead(nn.Module):
    """LayerNorm, dropout, linear, on one vector an event.

    Args:
        config: of the model.
        outputs: numbers to predict.
        readout: what makes that vector, see `DetectorModel._make_readout`; None: the encoder's own event vector.
    """

    def __init__(self, config: DetectorConfig, outputs: int, readout: nn.Module | None = None):
        super().__init__()
        self.readout = readout
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.head_dropout)
        self.output = HeadLinear(config.hidden_size, outputs)

    def vector(self, encoded: EncoderOutput) -> Tensor:
        """What the head reads, (B, hidden_size)."""
        return encoded.pooler_output if self.readout is None else self.readout(encoded)[:, 0]

    def forward(self, encoded: EncoderOutput, vector: Tensor | None = None) -> Tensor:
        """Predict (B, outputs); `vector`, (B, hidden_size), is what a read-out shared with other heads has found for this one."""
        return self.output(self.dropout(self.norm(self.vector(encoded) if vector is None else vector)))
