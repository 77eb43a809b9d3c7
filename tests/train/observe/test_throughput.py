"""Rates of a step, and what a run's figures come from."""

import jax
import pytest

from qwen35_jax.sharding import make_mesh
from tests.train.conftest import small_config
from train.config import DataConfig, LoraConfig, ModelSource, Recipe, TrainConfig
from train.observe.throughput import Throughput, memory_in_use


def test_utilisation_is_the_share_of_what_all_devices_could_do():
    rates = Throughput(num_devices=4, flops_per_token=2e9, peak_flops_per_second=1e12).rates(tokens=1000, seconds=2.0)
    assert rates["tokens_per_second"] == 500
    assert rates["tokens_per_device_per_second"] == 125
    assert rates["fraction_of_peak_flops_per_second"] == pytest.approx(125 * 2e9 / 1e12)


def test_utilisation_is_left_out_where_the_peak_is_unknown():
    recipe = Recipe(ModelSource("base"), DataConfig("x.jsonl", sequence_length=64), steps=2, lora=LoraConfig())
    throughput = Throughput.of(TrainConfig(recipe), small_config(), make_mesh(data=2))
    assert throughput.num_devices == 2 and throughput.flops_per_token > 0
    assert "fraction_of_peak_flops_per_second" not in throughput.rates(10, 1.0)


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    assert memory_in_use() == {}  # CPUs tell nothing

    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {"bytes_in_use": self.used, "bytes_limit": 100}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(7)])
    assert memory_in_use() == {"hbm/bytes_in_use": 7, "hbm/bytes_limit": 100}
