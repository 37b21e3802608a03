"""Pretrained sparse multimodal encoders for neutrino detectors."""
