"""What an engine needs on a TPU: memory by part, requests that fit, and tokens a second by the bytes that move.

The programs ``decode`` and ``prefill`` are compiled ahead of time from shapes alone, in the sizes that an engine would
choose for itself on these chips: no weights and no tokenizer are read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwen35_jax.config import ModelConfig
from qwen35_jax.inference.decode import Order, Program, decode
from qwen35_jax.inference.distribution import Masks
from qwen35_jax.inference.memory import Memory
from qwen35_jax.inference.prefill import Chunk, prefill
from qwen35_jax.inference.runner import make_memory
from qwen35_jax.inference.sizes import EngineSizes, bytes_of_slot, bytes_of_token
from qwen35_jax.inference.slots import Slots
from qwen35_jax.model import Qwen35
from qwen35_jax.planning.aot import Compiled, abstract_model, bytes_per_device, compile_abstract, topology_devices
from qwen35_jax.planning.decode_report import DecodePlan, Work
from qwen35_jax.planning.devices import Device, find_device
from qwen35_jax.planning.flops import forward_flops_per_token
from qwen35_jax.planning.hlo import Collective, read_costs
from qwen35_jax.planning.seeing import chunk_vision, compile_tower, sights, tower_work, with_tower
from qwen35_jax.sharding import AXES, MeshConfig, check_mesh, num_shards
from qwen35_jax.state import PagedKeyValues

DEFAULT_SLOTS = 64
_STEPS_PER_CALL = 32
# Ids of the think marks are constants of the program; which ones they are changes nothing in its cost.
_MARKS = (0, 1)


@dataclass(frozen=True)
class Workload:
    """What an engine is planned for.

    Attributes:
      length: tokens of a request, prompt and completion together.
      slots: requests that write at once; by default 64, or more on more devices that share out the batch.
      speculative_tokens, draft_vocabulary: as in ``Engine``.
      patches: most of the images and videos of a request; 0 for text alone.
    """

    length: int = 32_768
    slots: int | None = None
    speculative_tokens: int = 0
    draft_vocabulary: int | None = None
    patches: int = 0


@dataclass(frozen=True)
class Layout:
    """An engine on the chips of a topology, as known before anything is compiled. Bytes are those of one device.

    Attributes:
      mesh: size of each mesh axis, which ``on_mesh`` has.
      model: shapes in the place of arrays.
      engine: the sizes that the engine chooses by itself.
      weights: bytes.
    """

    config: ModelConfig
    topology: str
    device: Device
    mesh: Mapping[str, int]
    on_mesh: Mesh
    model: Qwen35
    engine: EngineSizes
    weights: int

    @property
    def num_devices(self) -> int:
        """Chips of the topology."""
        return self.on_mesh.size

    @property
    def tensor(self) -> int:
        """Devices that share out each layer."""
        return num_shards("heads", self.on_mesh)

    def model_bytes(self) -> dict[str, int]:
        """Returns what one device reads of the decoder, the output head and the MTP head each time that they run."""
        return _model_bytes(self.model, num_shards("embed", self.on_mesh))

    def step(self, length: int, sent: tuple[Collective, ...] = ()) -> Work:
        """Returns what one device does in a step in which all slots write, each after ``length`` tokens."""
        return decode_work(self.config, self.engine, length, self.tensor, self.model_bytes(), sent)

    def chunk(self, length: int, sent: tuple[Collective, ...] = ()) -> Work:
        """Returns what one device does for one chunk of a prompt of ``length`` tokens."""
        return prefill_work(self.config, self.engine, length, self.tensor, self.model_bytes(), sent)

    def look(self, patches: int, frame_patches: int) -> Work:
        """Returns what one device does for an image or a video, as ``tower_work`` counts it."""
        assert self.config.vision is not None, "a layout without patches has no tower"
        weights = bytes_per_device(nnx.state(self.model.vision))
        return tower_work(self.config.vision, patches, frame_patches, weights, self.tensor)


def lay_out(
    config: ModelConfig, topology: str, workload: Workload, mesh: Mapping[str, int | None] | None = None
) -> Layout:
    """Lays an engine out on a topology; compiles nothing.

    Args:
      topology: chips, such as ``v5e:2x4``.
      mesh: size of each mesh axis; ``data`` takes the chips that the others leave.

    Raises:
      ValueError: an unknown topology; a mesh that is not of its size or does not divide the model; slots that the mesh
        does not divide; a size out of range, or a model that has experts or cannot draft.
    """
    devices = topology_devices(topology)
    sizes = _mesh_sizes(config, topology, len(devices), mesh or {})
    on_mesh = MeshConfig(**sizes).mesh(devices)
    slots = _checked_slots(config, workload, num_shards("batch", on_mesh))
    model = abstract_model(lambda: Qwen35(config, vision=workload.patches > 0, rngs=nnx.Rngs(0)), on_mesh)
    device = find_device(topology)
    assert device is not None, topology
    weights = bytes_per_device(nnx.state(model))
    engine = EngineSizes.of(
        model, slots=slots, cache_tokens=None, speculative_tokens=workload.speculative_tokens, page_size=None,
        prefill_chunk=None, steps_per_call=_STEPS_PER_CALL, draft_vocabulary=workload.draft_vocabulary,
        most_patches=workload.patches, free_bytes=device.hbm_bytes - weights,
    )  # fmt: skip
    return Layout(config, topology, device, sizes, on_mesh, model, engine, weights)


def plan_decode(
    config: ModelConfig, topology: str, workload: Workload, mesh: Mapping[str, int | None] | None = None
) -> DecodePlan:
    """Compiles the programs of an engine for a topology and says what they need.

    Args:
      topology, mesh: as in ``lay_out``.

    Raises:
      ValueError: as ``lay_out`` does.
    """
    layout = lay_out(config, topology, workload, mesh)
    model, engine, on_mesh = layout.model, layout.engine, layout.on_mesh
    memory, state = _abstract_memory(model, engine, on_mesh)
    decoding = _compile_decode(model, memory, state, engine, on_mesh)
    reading = _compile_prefill(model, memory, state, engine, on_mesh)
    pages = sum(bytes_per_device(x) for x in _pages(memory))
    states = bytes_per_device((memory, state)) - pages
    peak = max(decoding.peak_bytes, reading.peak_bytes)
    hbm = {"weights": layout.weights, "states": states, "pages": pages,
           "temporaries": peak - layout.weights - states - pages, "peak": peak,
           "capacity": layout.device.hbm_bytes}  # fmt: skip
    compiles, seen = decoding.fits and reading.fits, ()
    length, sent, sent_reading = workload.length, _collectives(decoding), _collectives(reading)
    if workload.patches and config.vision is not None:
        hbm = with_tower(hbm, compile_tower(model, engine, on_mesh))
        seen = sights(config.vision, engine, layout.look, lambda tokens: layout.chunk(tokens, sent_reading))
        compiles = compiles and hbm["peak"] <= hbm["capacity"]
    return DecodePlan(
        topology=topology, device=layout.device, num_devices=layout.num_devices, mesh=layout.mesh, engine=engine,
        length=length, max_length=config.text.max_position_embeddings, compiles=compiles, hbm=hbm,
        page_bytes=pages // engine.num_pages, half=layout.step(length // 2, sent), full=layout.step(length, sent),
        chunk=layout.chunk(length, sent_reading), sights=seen,
    )  # fmt: skip


def _mesh_sizes(config: ModelConfig, topology: str, chips: int, asked: Mapping[str, int | None]) -> dict[str, int]:
    """Returns the size of each mesh axis; ``data`` takes what the others leave."""
    sizes = {axis: 1 if (size := asked.get(axis)) is None else size for axis in AXES}
    for axis, size in sizes.items():
        if size < 1:
            raise ValueError(f"mesh.{axis}={size}; give at least 1.")
    if asked.get("data") is None:
        sizes["data"] = max(chips // math.prod(sizes.values()), 1)
    used = math.prod(sizes.values())
    if used != chips:
        raise ValueError(
            f"the mesh has {used} devices, but {topology} has {chips}; make the product of --mesh.data, --mesh.fsdp "
            f"and --mesh.tensor {chips}."
        )
    check_mesh(config.text, sizes)
    return sizes


def _checked_slots(config: ModelConfig, workload: Workload, shards: int) -> int:
    """Checks what can be wrong before anything is compiled; returns the slots."""
    if config.text.moe is not None:
        raise ValueError(f"{config.architecture} has experts, which are not implemented; use a dense size.")
    most = config.text.max_position_embeddings
    if not 2 <= workload.length <= most:
        raise ValueError(f"length={workload.length}; give 2 to {most}, the model's most positions.")
    slots = max(DEFAULT_SLOTS // shards, 1) * shards if workload.slots is None else workload.slots
    if workload.patches < 0 or (workload.patches and config.vision is None):
        raise ValueError(f"patches={workload.patches}, but the model has no vision tower or the number is below 0.")
    tokens = workload.patches // config.vision.spatial_merge_size**2 if config.vision else 0
    if tokens >= workload.length:
        raise ValueError(
            f"patches={workload.patches} make {tokens} tokens, but length={workload.length}; give a larger length or "
            "fewer patches."
        )
    if slots < 1 or slots % shards:
        nearest = max(round(slots / shards), 1) * shards
        raise ValueError(
            f"slots={slots}, but {shards} groups of devices share out the slots; give a multiple of {shards}, such as "
            f"{nearest}."
        )
    return slots


def _abstract_memory(model: Qwen35, engine: EngineSizes, mesh: Mesh) -> tuple[Memory, Slots]:
    """Returns the shapes of an engine's memory, placed as the engine places it."""
    arguments = model.config.text, engine, model.dtype
    with jax.set_mesh(mesh):
        lowered = make_memory.lower(*arguments)
    shapes = jax.eval_shape(lambda: lowered.out_info)
    whole = NamedSharding(mesh, PartitionSpec())
    places = jax.tree.map(lambda _: whole, shapes) if mesh.size == 1 else lowered.compile().output_shardings
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)


def _compile_decode(model: Qwen35, memory: Memory, slots: Slots, engine: EngineSizes, mesh: Mesh) -> Compiled:
    count, words = engine.slots, -(-model.config.text.vocab_size // 32)

    def make_order() -> Order:
        masks = Masks(_flags(count), _ints(count, words))
        return Order(_ints(count, engine.most_pages), _ints(), _flags(count), _flags(), masks)

    order = jax.eval_shape(make_order)
    program = Program(_MARKS, engine.steps_per_call, engine.draft_vocabulary)
    return compile_abstract(decode, *nnx.split(model), memory, slots, order, program, mesh=mesh)


def _compile_prefill(model: Qwen35, memory: Memory, slots: Slots, engine: EngineSizes, mesh: Mesh) -> Compiled:
    rows = engine.shards

    def make_chunk() -> Chunk:
        tokens = _ints(rows, engine.chunk)
        return Chunk(_ints(rows), tokens, tokens, tokens, _ints(rows, engine.most_pages), _ints(rows))

    chunk = jax.eval_shape(make_chunk)
    vision = chunk_vision(model, engine, mesh) if engine.most_patches else None
    return compile_abstract(prefill, *nnx.split(model), memory, slots.seen, chunk, vision, mesh=mesh, scored=False)


def _ints(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.int32)


def _flags(*shape: int) -> jax.Array:
    return jnp.zeros(shape, bool)


def _pages(memory: Memory) -> list[PagedKeyValues]:
    return [x for x in (*memory.layers, memory.mtp) if isinstance(x, PagedKeyValues)]


def _collectives(compiled: Compiled) -> tuple[Collective, ...]:
    """Returns what one step or chunk sends: a call's loop over steps counts as if it ran once."""
    return () if compiled.text is None else tuple(read_costs(compiled.text).collectives)


def _model_bytes(model: Qwen35, parts_of_weights: int) -> dict[str, int]:
    """Returns what one device reads of the decoder, the output head and the MTP head each time that they run."""
    parts: dict[str, Any] = {
        "decoder": (nnx.state(model.layers), nnx.state(model.norm)),
        "head": nnx.state(model.embed_tokens if model.lm_head is None else model.lm_head),
        "mtp": () if model.mtp is None else nnx.state(model.mtp),
    }
    # Devices that share out the weights hold a part each and compute with the whole.
    return {name: bytes_per_device(part) * parts_of_weights for name, part in parts.items()}


def decode_work(
    config: ModelConfig,
    engine: EngineSizes,
    length: int,
    tensor: int,
    model_bytes: Mapping[str, int],
    collectives: tuple[Collective, ...] = (),
) -> Work:
    """Counts what one device does in a step in which all slots write.

    Every weight is read once, and once more for each draft what drafting takes; states and logits are read and written;
    keys and values are read up to the request's length.

    Args:
      length: tokens of each request so far.
      model_bytes: of ``decoder``, ``head`` and ``mtp`` on a device.
    """
    text, drafts, slots = config.text, engine.num_drafts, engine.slots // engine.shards
    itemsize = jnp.dtype(jnp.bfloat16).itemsize
    trimmed = (engine.draft_vocabulary or text.vocab_size) / text.vocab_size
    weights = model_bytes["decoder"] + model_bytes["head"]
    weights += drafts * (model_bytes["mtp"] + trimmed * model_bytes["head"])
    token = bytes_of_token(text, itemsize, drafts=False, tensor=tensor) / tensor
    keys_values = length * token * (1 + drafts / text.num_periods)
    states = 2 * (bytes_of_slot(text, itemsize, drafts) - 4 * text.vocab_size) / tensor
    logits = 2 * 4 * text.vocab_size * (drafts + 1 + drafts * trimmed) / tensor
    plain, drafting = (forward_flops_per_token(config, sequence_length=2 * length, mtp_steps=n) for n in (0, drafts))
    flops = slots * ((drafts + 1) * plain + drafting - plain) / tensor
    return Work(flops, weights + slots * (keys_values + states + logits), collectives)


def prefill_work(
    config: ModelConfig,
    engine: EngineSizes,
    length: int,
    tensor: int,
    model_bytes: Mapping[str, int],
    collectives: tuple[Collective, ...] = (),
) -> Work:
    """Counts what one device does for one chunk of a prompt of ``length`` tokens, on the average over its chunks."""
    text, drafting = config.text, bool(engine.num_drafts)
    heads = 2 * text.vocab_size * text.hidden_size * (1 + drafting)
    # A chunk computes no logits.
    per_token = forward_flops_per_token(config, sequence_length=length, mtp_steps=int(drafting)) - heads
    token = bytes_of_token(text, jnp.dtype(jnp.bfloat16).itemsize, drafts=drafting, tensor=tensor) / tensor
    moved = model_bytes["decoder"] + drafting * model_bytes["mtp"] + token * (length / 2 + engine.chunk)
    return Work(engine.chunk * per_token / tensor, moved, collectives)
