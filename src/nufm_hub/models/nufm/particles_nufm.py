"""All particles of an event at once: each is encoded from its crop, then they look at each other."""

from __future__ import annotations

from torch import Tensor, nn

from nufm_hub.models.common.heads import Classification
from nufm_hub.models.common.outputs import HeadOutput
from nufm_hub.models.common.pooling import HeadLinear

from .configuration_nufm import NuFMConfig
from .layers_nufm import NuFMLayer, Sequences
from .modeling_nufm import NuFMInputs, NuFMPreTrainedModel


class NuFMContextHead(nn.Module):
    """Features of the particles added to their vectors, layers between the particles of an event, and a linear layer.

    After the multi-particle classifier of the published transfer study (arXiv:2604.07037), but for `context_pooled_norm`. With
    `context_depth=0` every particle is alone, as in its single-particle form with features.
    """

    def __init__(self, config: NuFMConfig, features: int, outputs: int):
        super().__init__()
        size, depth = config.hidden_size, config.context_depth
        self.pooled_norm = nn.LayerNorm(size, elementwise_affine=False) if config.context_pooled_norm else nn.Identity()
        self.feature_norm = nn.LayerNorm(features)
        self.feature_mlp = nn.Sequential(nn.Linear(features, size), nn.GELU(), nn.Linear(size, size), nn.Dropout(config.context_dropout))
        self.input_norm = nn.LayerNorm(size) if depth else nn.Identity()
        self.layers = nn.ModuleList(NuFMLayer(config, size, config.num_attention_heads) for _ in range(depth))
        self.context_norm = nn.LayerNorm(size) if depth else nn.Identity()
        for layer in self.layers:  # published with torch's defaults here, unlike in the encoder
            layer.attention_norm.eps = layer.mlp_norm.eps = self.input_norm.eps
            layer.dropout.p = layer.mlp[-1].p = config.context_dropout
        self.norm = nn.LayerNorm(size, eps=self.input_norm.eps if depth else config.layer_norm_eps)
        self.dropout = nn.Dropout(config.head_dropout)
        self.output = HeadLinear(size, outputs)

    def forward(self, pooled: Tensor, features: Tensor, sequences: Sequences) -> Tensor:
        """Particles (P, hidden_size) with features (P, F), and the events they form -> (P, outputs)."""
        hidden = self.input_norm(self.pooled_norm(pooled) + self.feature_mlp(self.feature_norm(features.to(pooled.dtype))))
        for layer in self.layers:
            hidden, _ = layer(hidden, sequences)
        return self.output(self.dropout(self.norm(self.context_norm(hidden))))


class NuFMForEventParticleID(Classification, NuFMPreTrainedModel):
    """Kinds of the particles of events, from a crop and the features of each (see `nufm_hub.events.crops`).

    The detector is one of crops: its track branch holds the features, at most one row a particle. Here they are added to the
    particle's vector instead of being a token. `labels`: int64 (P,), index in the detector's `particle` classes, -100: unknown.
    """

    event_label = "particle"

    def __init__(self, config: NuFMConfig):
        super().__init__(config)
        self.embeddings.tracks = None  # its features enter in the head

    def _make_head(self, config: NuFMConfig, quantity: str, outputs: int, readout: nn.Module | None = None) -> nn.Module:
        branch = config.spec.track_branch
        if branch is None or branch.max_count != 1:
            raise ValueError(f"detector {config.spec.name!r} has no features of single particles: make one with nufm_hub.events.crops.crop_detector")
        return NuFMContextHead(config, len(branch.model_features), outputs)

    def forward(
        self,
        *args: Tensor,
        particle_event: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **inputs: Tensor,
    ) -> HeadOutput | tuple:
        """Predict P particles.

        Args:
            args, inputs: see `NuFMInputs`, with the P crops as batch. `track_features`, float (P, 1, F), are the features; `track_mask` is not
                used: every particle has them.
            particle_event: int64 (P,), number of the event in the batch, from 0, that each particle belongs to.
            labels: see the class; num_items_in_batch: see `task_loss`.

        Raises:
            ValueError: inputs that do not fit.
        """
        given = NuFMInputs(*args, **inputs)
        particles, features = given.shape[0], given.track_features
        if particle_event is None or particle_event.shape != (particles,):
            got = None if particle_event is None else tuple(particle_event.shape)
            raise ValueError(f"give particle_event, the event of each of the {particles} particles, of shape ({particles},); got {got}")
        if features is None or features.shape[:2] != (particles, 1):
            got = None if features is None else tuple(features.shape)
            raise ValueError(f"give track_features, one row of features for each of the {particles} particles; got {got}")
        encoded = self.encode(*args, output_hidden_states=False, output_attentions=False, **inputs)
        events = int(particle_event.max()) + 1 if particles else 0
        logits = self.head(encoded.pooler_output, features[:, 0], Sequences(particle_event, events))
        loss = None if labels is None else self.task_loss(logits, labels, num_items_in_batch)
        return self._returned(HeadOutput(loss=loss, logits=logits), return_dict)
