"""Detectors as data: `load_detector("fasercal")`."""

from .spec import Blocks, DetectorSpec, ImageBranch, TrackBranch, VoxelBranch, VoxelLabel, list_detectors, load_detector

__all__ = ["Blocks", "DetectorSpec", "ImageBranch", "TrackBranch", "VoxelBranch", "VoxelLabel", "list_detectors", "load_detector"]
