"""Tiny checkpoints on disk: with weights that all matter, an MTP head, and a vision tower."""

import pytest

from tests.hf.helpers import small_config, write_reference


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """A tied checkpoint and the reference model that it holds: (folder, model)."""
    folder = tmp_path_factory.mktemp("reference") / "base"
    return folder, write_reference(folder, small_config())


@pytest.fixture(scope="session")
def untied(tmp_path_factory):
    """The same with an output head of its own."""
    folder = tmp_path_factory.mktemp("untied") / "base"
    return folder, write_reference(folder, small_config(tied=False))
