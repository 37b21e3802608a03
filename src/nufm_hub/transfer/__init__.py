"""Take a pretrained encoder to another detector, and say exactly what was carried over.

model, report = transfer_encoder("nufm/fasercal-mae-rel", AutoModelForParticleID, detector="superfgd")
print(report)
"""

from .encoder import transfer_encoder
from .freezing import WarmUpNewWeights, freeze_carried, unfreeze
from .report import TransferReport, TransferRow

__all__ = ["TransferReport", "TransferRow", "WarmUpNewWeights", "freeze_carried", "transfer_encoder", "unfreeze"]
