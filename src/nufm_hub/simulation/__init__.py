"""Simulated events: generators and Geant4 to `Event`, for `nufm simulate`. Needs `pip install "nufm-hub[simulation]"`.

`runner.run_simulation(settings, ...)` runs any of `fasercal.FaserCalSettings`, `superfgd.SuperFGDSettings` and `pilarnet.PILArNetSettings`.
"""
