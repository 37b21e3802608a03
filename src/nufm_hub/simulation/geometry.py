"""The FASERCal-like stack of sub-detectors for Geant4, all positions derived from the detector's JSON.

Layout after the public FASERCal description: ten modules of Al 5 | W 1 | scintillator 200 | Al 5 | air 30 mm, an electromagnetic calorimeter of
5 x 5 towers of 121.2 mm (66 x (Pb 2 + scintillator 4 mm)), and an analogue hadronic calorimeter of 40 steel layers with 40 mm scintillator tiles.
Lengths are in mm, in the detector frame: z along the beam, x = y = 0 on the axis of the stack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nufm_hub.detectors import DetectorSpec

SCINTILLATOR_SIZE, SCINTILLATOR_DEPTH = 480.0, 200.0
PLATE_THICKNESS, TUNGSTEN_THICKNESS, MODULE_AIR = 5.0, 1.0, 30.0
GAP = 250.0
ECAL_LAYERS, ECAL_LEAD, ECAL_SCINTILLATOR = 66, 2.0, 4.0
AHCAL_COVER, AHCAL_SCINTILLATOR, AHCAL_BOARD, AHCAL_AIR, AHCAL_STEEL = 0.065, 3.0, 2.5, 4.5, 19.5

SCINTILLATOR_DENSITY, TUNGSTEN_DENSITY = 1.032, 19.3  # g/cm3, as in Geant4's NIST materials used below
_SCINTILLATOR = "G4_PLASTIC_SC_VINYLTOLUENE"
# Epoxy-glass laminate; the epoxy is close to acrylic in composition.
_FR4 = {"density": 1.86, "composition": {"G4_SILICON_DIOXIDE": 0.528, "G4_PLEXIGLASS": 0.472}}

EXIT_PLANE, END_PLANE = "Exit", "End"


@dataclass(frozen=True)
class FaserCalGeometry:
    """Positions along z in mm of the parts of the stack.

    Attributes:
        module_starts: low edge of the scintillator of each 3DCal module.
        ecal_start, ecal_end, ecal_size: ECAL low and high edge, and its edge length in x and y.
        ahcal_start, ahcal_pitch, ahcal_layers, ahcal_size: AHCAL low edge, layer pitch, number of layers, and edge length in x and y.
    """

    module_starts: tuple[float, ...]
    ecal_start: float
    ecal_size: float
    ahcal_start: float
    ahcal_pitch: float
    ahcal_layers: int
    ahcal_size: float

    @classmethod
    def from_spec(cls, spec: DetectorSpec) -> FaserCalGeometry:
        """Geometry of the `3dcal`, `ecal` and `ahcal` branches of a detector.

        Raises:
            ValueError: the branches do not fit the stack (block depth, layer pitch or gaps).
        """
        cal, ahcal, ecal = spec.branch("3dcal"), spec.branch("ahcal"), spec.branch("ecal")
        out = cls(
            module_starts=cal.blocks.starts,
            ecal_start=cal.blocks.starts[-1] + SCINTILLATOR_DEPTH + PLATE_THICKNESS + MODULE_AIR + GAP,
            ecal_size=ecal.shape[0] * ecal.pixel_size[0],
            ahcal_start=ahcal.origin[2],
            ahcal_pitch=ahcal.voxel_size[2],
            ahcal_layers=ahcal.shape[2],
            ahcal_size=ahcal.shape[0] * ahcal.voxel_size[0],
        )
        layer = 2 * AHCAL_COVER + AHCAL_SCINTILLATOR + AHCAL_BOARD + AHCAL_AIR + AHCAL_STEEL
        checks = {
            "3dcal block depth": (cal.blocks.length * cal.voxel_size[2], SCINTILLATOR_DEPTH),
            "3dcal width": (cal.shape[0] * cal.voxel_size[0], SCINTILLATOR_SIZE),
            "ahcal layer pitch": (out.ahcal_pitch, layer),
            "ahcal start": (out.ahcal_start, out.ecal_end + GAP),
        }
        for name, (found, expected) in checks.items():
            if abs(found - expected) > 1e-6:
                raise ValueError(f"detector {spec.name!r}: {name} is {found} mm but the simulated stack needs {expected} mm")
        return out

    @property
    def ecal_end(self) -> float:
        return self.ecal_start + ECAL_LAYERS * (ECAL_LEAD + ECAL_SCINTILLATOR)

    @property
    def exit_z(self) -> float:
        """Plane between the 3DCal and the ECAL where particles change from the first to the second transport stage."""
        return self.ecal_start - GAP + 5.0

    @property
    def end_z(self) -> float:
        """Plane behind the AHCAL where leaving muons are recorded."""
        return self.ahcal_start + self.ahcal_layers * self.ahcal_pitch + 5.0

    def to_calzone(self) -> dict[str, Any]:
        """Geometry dictionary for `calzone.Simulation` (cm): sensitive volumes `Cube<module>`, `Ecal<layer>`, `Ahcal<layer>`."""
        volumes: dict[str, Any] = {}

        def box(name: str, size: float, low: float, depth: float, material: str, role: str | None = None) -> None:
            volume = {"box": [size / 10, size / 10, depth / 10], "position": [0.0, 0.0, (low + depth / 2) / 10], "material": material}
            volumes[name] = volume if role is None else {**volume, "role": role}

        for i, start in enumerate(self.module_starts):
            box(f"FrontPlate{i}", SCINTILLATOR_SIZE, start - TUNGSTEN_THICKNESS - PLATE_THICKNESS, PLATE_THICKNESS, "G4_Al")
            box(f"Tungsten{i}", SCINTILLATOR_SIZE, start - TUNGSTEN_THICKNESS, TUNGSTEN_THICKNESS, "G4_W")
            box(f"Cube{i}", SCINTILLATOR_SIZE, start, SCINTILLATOR_DEPTH, _SCINTILLATOR, "record_deposits")
            box(f"BackPlate{i}", SCINTILLATOR_SIZE, start + SCINTILLATOR_DEPTH, PLATE_THICKNESS, "G4_Al")
        # Wide enough that whatever leaves the 3DCal towards the rear calorimeters crosses it.
        box(EXIT_PLANE, 2900.0, self.exit_z, 1.0, "G4_AIR", "catch_ingoing")
        for i in range(ECAL_LAYERS):
            low = self.ecal_start + i * (ECAL_LEAD + ECAL_SCINTILLATOR)
            box(f"Lead{i}", self.ecal_size, low, ECAL_LEAD, "G4_Pb")
            box(f"Ecal{i}", self.ecal_size, low + ECAL_LEAD, ECAL_SCINTILLATOR, _SCINTILLATOR, "record_deposits")
        for i in range(self.ahcal_layers):
            low = self.ahcal_start + i * self.ahcal_pitch + AHCAL_COVER
            box(f"Ahcal{i}", self.ahcal_size, low, AHCAL_SCINTILLATOR, "G4_POLYSTYRENE", "record_deposits")
            low += AHCAL_SCINTILLATOR + AHCAL_COVER
            box(f"Board{i}", self.ahcal_size, low, AHCAL_BOARD, "FR4")
            box(f"Steel{i}", self.ahcal_size, low + AHCAL_BOARD + AHCAL_AIR, AHCAL_STEEL, "G4_Fe")
        box(END_PLANE, self.ahcal_size, self.end_z, 1.0, "G4_AIR", "record_ingoing")
        depth = 2 * (self.end_z / 10 + 100.0)
        return {"materials": {"mixtures": {"FR4": _FR4}}, "World": {"box": [300.0, 300.0, depth], "material": "G4_AIR", **volumes}}
