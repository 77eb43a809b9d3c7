"""Run settings with a teacher, and stores that were written for them."""

import dataclasses
import shutil

import pytest

from train.config import DataConfig, Distillation, Layout, MeshConfig, ModelSource, Recipe, TeacherConfig, TrainConfig
from train.signals import teaching

K = 5


class Settings:
    """Those of a signal."""

    def __init__(self, signal):
        self.signal, self.k, self.width, self.dtype = signal, 4, 6, "bfloat16"


@pytest.fixture(scope="session")
def settings(inputs):
    """Makes the settings of a run on the inputs of the tests, whose student is its own teacher."""

    def make(store, *, signal="hidden", mesh=None, teacher=None, **data):
        base = str(inputs / "base")
        options = {"sequence_length": 64, "sequences_per_batch": 4, "eval_fraction": 0.1} | data
        heard = TeacherConfig(path=base, dtype="float32", store=str(store), signal=signal, k=K)
        recipe = Recipe(
            model=ModelSource(path=base, dtype="float32"),
            data=DataConfig(**{"path": str(inputs / "train.jsonl"), **options}),
            steps=3,
            accumulation=2,
            objective=Distillation(teacher=dataclasses.replace(heard, **(teacher or {}))),
        )
        return TrainConfig(recipe=recipe, layout=Layout(mesh=mesh or MeshConfig()))

    return make


@pytest.fixture(scope="session")
def stores(settings, tmp_path_factory):
    """The folders of whole stores by their signals; nobody may change them."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teaching, "SHARD_BYTES", 1 << 17)
        for signal in ("hidden", "topk"):
            folders[signal] = tmp_path_factory.mktemp("stores") / signal
            teaching.write_store(settings(folders[signal], signal=signal))
    return folders


@pytest.fixture
def store_copy(stores, tmp_path):
    """A copy of the store of hidden states, which a test may damage."""
    return shutil.copytree(stores["hidden"], tmp_path / "store")
