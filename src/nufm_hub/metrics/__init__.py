"""Metrics: `evaluate.Metric` classes that work offline by instantiation, each with a bootstrap interval.

    MacroAUROC().compute(predictions=probabilities, references=labels, class_names=spec.classes("flavour"))

Every result is JSON-able. A value that is undefined (the purity of a class that was never predicted) is None, never zero.
"""

from .classification import BalancedAccuracy, MacroAUROC, PurityEfficiency
from .confidence import ErrorDetectionAUROC, ExpectedCalibrationError
from .regression import RelativeResidual, ThresholdAUROC, VertexError
from .trainer import LEAST_MISSING_PT, flavour_metrics, kinematic_sizes, momentum_metrics, reconstruction_metrics, vertex_metrics, voxel_metrics
from .voxels import VoxelClassification

__all__ = [
    "LEAST_MISSING_PT",
    "BalancedAccuracy",
    "ErrorDetectionAUROC",
    "ExpectedCalibrationError",
    "MacroAUROC",
    "PurityEfficiency",
    "RelativeResidual",
    "ThresholdAUROC",
    "VertexError",
    "VoxelClassification",
    "flavour_metrics",
    "kinematic_sizes",
    "momentum_metrics",
    "reconstruction_metrics",
    "vertex_metrics",
    "voxel_metrics",
]
