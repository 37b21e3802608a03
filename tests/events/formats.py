"""Writers of the foreign formats that the readers read, in exactly their layouts."""

from pathlib import Path

import h5py
import numpy as np
import torch

# Columns as `nufm_hub.events.readers` documents them.
TRACK, PARENT, PRIMARY, PDG, ENERGY, IS_PRIMARY, IS_SECONDARY = 0, 1, 2, 3, 8, 9, 10


def fasercal_arrays(**changes):
    """Three voxels: muon (1 MeV) with electron (3 MeV); pi+ from a primary; ghost. Then what `changes` replaces; None removes an array."""
    true_hits = np.zeros((3, 13), np.float32)
    true_hits[:, TRACK] = 1, 2, 3
    true_hits[:, PARENT] = 0, 0, 1
    true_hits[:, PRIMARY] = 1, 2, 1
    true_hits[:, PDG] = 13, 11, 211
    true_hits[:, ENERGY] = 1, 3, 2
    true_hits[:, IS_PRIMARY] = 1, 1, 0
    true_hits[:, IS_SECONDARY] = 0, 0, 1
    arrays = {
        "run_number": 7,
        "event_id": 42,
        "is_cc": True,
        "is_es": False,
        "is_tau": False,
        "is_charmed": False,
        "reco_hits": np.array([[0, 1, 2, 0, 4.5, 0], [47, 47, 199, 9, 2.5, 0], [5, 6, 7, 0, 0.5, 1]], np.float32),
        "true_hits": true_hits,
        "indptr": np.array([0, 2, 3, 3], np.int32),
        "true_index": np.array([0, 1, 2], np.int32),
        "link_weight": np.array([0.25, 0.75, 1.0], np.float32),
        "ghost_mask": np.array([False, False, True]),
        "seg_labels": np.zeros((3, 4), np.float32),
        "ecal_hits": np.arange(25.0).reshape(5, 5),
        "ahcal_hits": np.array([[0, 0, 0, 1.5], [17, 17, 39, 2.5]]),
        "muspec_info": np.arange(22, dtype=np.float32).reshape(11, 2),
        "primary_vertex": np.array([1.0, 2.0, 300.0]),
        "in_neutrino_pdg": 14,
        "in_neutrino_momentum": np.array([0.0, 0.0, 900.0]),
        "out_lepton_momentum": np.array([1.0, 0.0, 500.0]),
        "vis_sp_momentum": np.array([0.5, 0.25, 880.0]),
        "jet_momentum": np.array([-0.5, 0.25, 380.0]),
        "tau_vis_momentum": np.zeros(3),
        "tau_decay_mode": 0,
        "tau_decay_length": 0.0,
        "charm_decay": np.zeros(0, [("g4_id", "i4"), ("track_id", "i4"), ("parent_id", "i4"), ("pdg", "i4")]),
    }
    arrays.update(changes)
    return {k: v for k, v in arrays.items() if v is not None}


def write_fasercal(path: Path, **changes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **fasercal_arrays(**changes))
    return path


def write_pilarnet_m(path: Path, events: list[dict], version: str) -> Path:
    """`events`: each {points (N, 4), clusters (M, 6), extra (M, 5 to 11)}; version 1 drops the particle column and `cluster_extra`."""
    flat = h5py.vlen_dtype(np.float32)
    with h5py.File(path, "w") as file:
        for name, dtype in (("point", flat), ("cluster", h5py.vlen_dtype(np.int32)), ("cluster_extra", flat)):
            if name == "cluster_extra" and version == "v1":
                continue
            data = file.create_dataset(name, (len(events),), dtype=dtype)
            for i, event in enumerate(events):
                if name == "point":
                    rows = np.concatenate([event["points"], np.full((len(event["points"]), 4), 0.5)], axis=1)
                elif name == "cluster":
                    rows = event["clusters"][:, : 5 if version == "v1" else 6]
                else:
                    rows = event["extra"]
                data[i] = np.asarray(rows).ravel()
    return path


def pilarnet_event(extra_columns: int = 5) -> dict:
    """Low-energy points, a shower of two clusters (the second leads: its id is the group's), a muon; (size, id, group, interaction, motif, pid)."""
    clusters = np.array([[2, -1, -1, -1, 4, -1], [3, 5, 4, 0, 0, 0], [1, 4, 4, 0, 0, 1], [2, 9, 9, 1, 1, 2]])
    low_energy, muon = [[1, 1, 1, 0.1], [2, 2, 2, 0.2]], [[700, 0, 767, 5], [701, 0, 767, 6]]
    points = np.array([*low_energy, *[[10 + i, 10, 10, 1 + i] for i in range(4)], *muon], dtype=float)
    extra = np.arange(4 * extra_columns, dtype=float).reshape(4, extra_columns)
    return {"points": points, "clusters": clusters, "extra": extra}


def write_larcv(path: Path, events: list[dict], n: int = 768) -> Path:
    """`events`: each {coordinates (N, 3), values (N,), groups (N,), particles: [(pdg, shape, px, py, pz MeV)]}."""
    extents = np.dtype([("first", "u8"), ("N", "u8")])
    voxel_extents = np.dtype([("first", "u8"), ("ID", "i8"), ("N", "u8")])
    voxel = np.dtype([("id", "u8"), ("value", "f4")])
    particle = np.dtype([("id", "u8"), ("pdg", "i4"), ("shape", "i4"), ("px", "f8"), ("py", "f8"), ("pz", "f8")])
    data, groups, particles = [], [], []
    where = {"data": [], "particles": []}
    for event in events:
        c = np.asarray(event["coordinates"], dtype=np.int64)
        ids = c[:, 0] * n * n + c[:, 1] * n + c[:, 2]
        where["data"].append((sum(map(len, data)), 0, len(c)))
        where["particles"].append((sum(map(len, particles)), len(event["particles"])))
        data.append(np.array(list(zip(ids, event["values"])), voxel))
        groups.append(np.array(list(zip(ids, event["groups"])), voxel))
        particles.append(np.array([(i, *p) for i, p in enumerate(event["particles"])], particle))
    with h5py.File(path, "w") as file:
        for name, rows in (("sparse3d_data_group", data), ("sparse3d_group_group", groups)):
            file[f"Data/{name}/voxel_extents"] = np.array(where["data"], voxel_extents)
            file[f"Data/{name}/voxels"] = np.concatenate(rows)
        file["Data/particle_mcst_group/extents"] = np.array(where["particles"], extents)
        file["Data/particle_mcst_group/particles"] = np.concatenate(particles)
    return path


def scintillator_event(**changes) -> dict:
    """Three hits in two cubes; the second cube's hit is crosstalk."""
    event = {
        "reco_hits": np.array([[-995.0, -5, 995, 10], [-995, -5, 995, 5], [5, 15, 25, 2]]),
        "Tag_Trk": np.array([True, False, False]),
        "true_nodes": np.zeros((2, 3)),
        "TrueIniPos": np.array([1.0, 2.0, 3.0], np.float32),
        "TrueIniDir": np.array([0.0, 0.0, 1.0], np.float32),
        "TrueIniP": np.float64(500.0),
    }
    event.update(changes)
    return {k: v for k, v in event.items() if v is not None}


def write_scintillator(path: Path, **changes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(scintillator_event(**changes), path)
    return path


def write_edepsim(path: Path, segments: list[tuple], names=("event_id", "traj_id", "pdg_id")) -> Path:
    """`segments`: (event, track, pdg, dE MeV, start (3), end (3))."""
    kinds = [(n, "i4") for n in names] + [(n, "f4") for n in ("dE", "x_start", "y_start", "z_start", "x_end", "y_end", "z_end")]
    with h5py.File(path, "w") as file:
        file["segments"] = np.array([(e, t, p, de, *a, *b) for e, t, p, de, a, b in segments], kinds)
    return path
