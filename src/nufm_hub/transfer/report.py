"""What became of every tensor when an encoder moved to another detector."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nufm_hub.files import new_file

REPORT_FILE = "transfer_report.json"
CARD_FILE = "README.md"
_HEADING, _LAST_LINE = "## What was carried over", "Carried over: "
STATUSES = ("loaded", "re-initialised", "missing", "skipped")


@dataclass(frozen=True)
class TransferRow:
    """One tensor.

    Attributes:
        name: name of the weight.
        status: `"loaded"` from the source; `"re-initialised"`: of the target, new although the source may have it; `"missing"`: of the
            target's encoder, new because the source has no such tensor; `"skipped"`: of the source, unused.
        reason: why, for people.
        shape: of the target's tensor, or of the source's when it was skipped.
        parameters: its number of elements.
    """

    name: str
    status: str
    reason: str
    shape: tuple[int, ...]
    parameters: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.status not in STATUSES:
            raise ValueError(f"tensor {self.name!r}: status {self.status!r} is none of {STATUSES}")

    @property
    def module(self) -> str:
        """`head`, `encoder.branches.0`, `encoder.cross_layers`, ...: the part of the model the tensor sits in."""
        parts = self.name.split(".")
        if (parts[0] == "embeddings" and parts[1] == "voxels") or self.name.startswith("encoder.branches."):
            return ".".join(parts[:3])
        return ".".join(parts[: 2 if parts[0] in ("embeddings", "encoder") else 1])


@dataclass(frozen=True)
class TransferReport:
    """What became of every tensor of a source and of the model made from it; `print` it for a table.

    Attributes:
        source: where the weights came from.
        source_detector, detector: names of the two detectors.
        model: class of the new model.
        rows: target tensors in the order of the model, then skipped tensors of the source.
    """

    source: str
    source_detector: str
    detector: str
    model: str
    rows: tuple[TransferRow, ...]

    @property
    def encoder_parameters(self) -> int:
        """Parameters of the new model's encoder."""
        return sum(r.parameters for r in self.rows if r.name.startswith("encoder.") and r.status != "skipped")

    @property
    def carried_parameters(self) -> int:
        """Parameters of the new model that come from the source."""
        return sum(r.parameters for r in self.rows if r.status == "loaded")

    @property
    def fraction(self) -> float:
        """Share of the parameters of the new model's encoder that come from the source."""
        return self.carried_parameters / self.encoder_parameters

    def names(self, status: str) -> list[str]:
        """Names of the tensors with a status."""
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {STATUSES}")
        return [r.name for r in self.rows if r.status == status]

    def summary(self) -> list[tuple[str, str, int, int, str]]:
        """(module, status, tensors, parameters, reason) for every combination, in order of appearance."""
        groups: dict[tuple[str, str, str], list[int]] = {}
        for r in self.rows:
            groups.setdefault((r.module, r.status, r.reason), []).append(r.parameters)
        return [(module, status, len(sizes), sum(sizes), reason) for (module, status, reason), sizes in groups.items()]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `TransferReport.from_dict` gives an equal report back."""
        return json.loads(json.dumps({**asdict(self), "fraction": self.fraction}))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TransferReport:
        """Raises ValueError when the data are no report."""
        try:
            held = {k: v for k, v in data.items() if k != "fraction"}
            return cls(**{**held, "rows": tuple(TransferRow(**row) for row in held["rows"])})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a transfer report: {error!r}") from error

    def save(self, folder: str | Path) -> Path:
        """Write `transfer_report.json` into the folder of a saved model, and the table into its card, `README.md`.

        A card that is there keeps everything else it says; where there is none, a short one is made. Saving a transferred model does this.

        Returns:
            The path of the JSON file.
        """
        path, card = Path(folder) / REPORT_FILE, Path(folder) / CARD_FILE
        with new_file(path, overwrite=True) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        text = self.add_to_card(card.read_text(encoding="utf-8") if card.is_file() else self._card())
        with new_file(card, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return path

    def add_to_card(self, card: str) -> str:
        """The text of a model card with the section that holds the table; an earlier such section is replaced."""
        section = f"{_HEADING}\n\n{self.to_markdown()}"
        earlier = rf"^{_HEADING}\n.*?^{_LAST_LINE}[^\n]*"
        text, found = re.subn(earlier, lambda match: section, card, count=1, flags=re.MULTILINE | re.DOTALL)
        return text if found else f"{card.rstrip()}\n\n{section}\n"

    def _card(self) -> str:
        base = f"base_model: {self.source}\n" if "/" in self.source else ""  # a folder's last name is no id
        return f"---\nlibrary_name: transformers\n{base}tags: [nufm, neutrino]\n---\n\n# {self.model} for {self.detector}\n"

    @classmethod
    def load(cls, folder: str | Path) -> TransferReport:
        """Read what `save` wrote."""
        path = Path(folder) / REPORT_FILE
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"cannot read a transfer report from {path}: {error}") from error

    def __str__(self) -> str:
        head = ("module", "status", "tensors", "parameters", "why")
        lines = [(m, s, str(n), f"{p:,}", why) for m, s, n, p, why in self.summary()]
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(5)]
        text = [f"{self.source} ({self.source_detector}) -> {self.model} ({self.detector})"]
        for line in (head, *lines):
            cells = [c.rjust(w) if i in (2, 3) else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths))]
            text.append("  ".join(cells).rstrip())
        text.append(f"{self.carried_parameters:,} of the encoder's {self.encoder_parameters:,} parameters carried over: {self.fraction:.1%}")
        return "\n".join(text)

    def to_markdown(self) -> str:
        """The table for a model card."""
        lines = ["| module | status | tensors | parameters | why |", "|---|---|---|---|---|"]
        lines += [f"| `{m}` | {s} | {n} | {p:,} | {why} |" for m, s, n, p, why in self.summary()]
        end = f"{_LAST_LINE}{self.fraction:.1%} of the encoder's {self.encoder_parameters:,} parameters, from `{self.source}`."
        return "\n".join([*lines, "", end])
