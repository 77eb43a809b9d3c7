"""The table of chips: names, units, and clocks that give the published peaks."""

import pytest

from qwen35_jax.planning.devices import DEVICES, find_device


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("v5e", "v5e"),
        ("v5e:2x4", "v5e"),
        ("v5p:2x2x1", "v5p"),
        ("v6e:1x1", "v6e"),
    ],
)
def test_names_of_jax_and_of_topologies_are_known(name, want):
    assert find_device(name).name == want


@pytest.mark.parametrize("name", ["cpu", "TPU v4", "NVIDIA H200", "", "v5e2x4"])
def test_other_names_are_unknown(name):
    assert find_device(name) is None


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_figures_are_in_the_stated_units(device):
    assert 1e14 < device.peak_flops < 1e16
    assert 2**33 < device.hbm_bytes < 2**37
    assert 1e11 < device.ici_bytes_per_second < device.hbm_bytes_per_second < 1e13


@pytest.mark.parametrize(("name", "cells"), [("v5e", 4 * 128**2), ("v5p", 8 * 128**2), ("v6e", 4 * 256**2)])
def test_every_cell_of_a_matrix_unit_multiplies_and_adds_once_a_cycle(name, cells):
    device = find_device(name)
    assert device.peak_flops == pytest.approx(2 * cells * device.clock_hz, rel=1e-3)
