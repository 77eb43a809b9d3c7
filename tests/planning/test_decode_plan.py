"""The plan of an engine: bytes and operations of a step, what is said of them, wrong input, a real compilation."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jaxtyping
import pytest

from qwen35_jax.cli import main
from qwen35_jax.inference.sizes import EngineSizes
from qwen35_jax.planning.decode import Workload, decode_work, plan_decode, prefill_work
from qwen35_jax.planning.decode_report import DecodePlan, Sight, Work, to_text
from qwen35_jax.planning.devices import find_device
from qwen35_jax.planning.hlo import Collective
from qwen35_jax.planning.seeing import CompiledTower, tower_work, with_tower
from qwen35_jax.presets import PRESETS

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)
CONFIG = PRESETS["2b"]
MODEL_BYTES = {"decoder": 2_700_000_000, "head": 1_000_000_000, "mtp": 100_000_000}
SIZES = EngineSizes(
    slots=64, shards=8, num_pages=3329, page_size=256, most_pages=1024, chunk=512, small_chunk=64, num_drafts=0,
    steps_per_call=32, draft_vocabulary=None,
)  # fmt: skip


def with_drafts(count: int, vocabulary: int | None = None) -> EngineSizes:
    return dataclasses.replace(SIZES, num_drafts=count, draft_vocabulary=vocabulary)


def a_plan(**changes) -> DecodePlan:
    device = find_device("v5e")
    assert device is not None
    gib = 2**30
    plan = DecodePlan(
        topology="v5e:2x4", device=device, num_devices=8, mesh={"data": 8, "fsdp": 1, "context": 1, "tensor": 1},
        engine=SIZES, length=32_768, max_length=262_144, compiles=True,
        hbm={"weights": 4 * gib, "states": gib, "pages": 3329 * 3_145_728, "temporaries": gib // 8,
             "peak": device.hbm_bytes - 300 * 3_145_728, "capacity": device.hbm_bytes},
        page_bytes=3_145_728, half=Work(1e10, 8.19e9), full=Work(1e10, 16.38e9), chunk=Work(1.97e12, 1e9),
    )  # fmt: skip
    return dataclasses.replace(plan, **changes)


def test_a_step_reads_weights_once_and_the_keys_of_every_slot():
    short, long = (decode_work(CONFIG, SIZES, length, 1, MODEL_BYTES) for length in (16_384, 32_768))
    # Six attention layers, two key heads of 256, keys and values, two bytes; eight slots a chip.
    assert long.bytes - short.bytes == 8 * 16_384 * 6 * 2 * 2 * 256 * 2
    empty = decode_work(CONFIG, SIZES, 1, 1, MODEL_BYTES).bytes - 3_700_000_000
    # The float32 states of 18 layers, read and written, are most of the rest.
    states = 8 * 2 * 18 * 16 * 128 * 128 * 4
    assert states < empty < 1.35 * states


def test_drafts_read_what_drafting_takes_once_more():
    plain, trimmed, whole = (
        decode_work(CONFIG, sizes, 1, 1, MODEL_BYTES).bytes
        for sizes in (SIZES, with_drafts(2, CONFIG.text.vocab_size // 4), with_drafts(2))
    )
    # Two passes over a quarter of the head or all of it; the logits of 8 slots besides, written and read.
    logits = 2 * 8 * 8 * CONFIG.text.vocab_size
    assert whole - trimmed == pytest.approx(0.75 * (2 * 1_000_000_000 + logits))
    assert trimmed - plain > 2 * (100_000_000 + 250_000_000)


def test_devices_that_share_a_layer_share_its_operations():
    alone, shared = (decode_work(CONFIG, SIZES, 1024, tensor, MODEL_BYTES) for tensor in (1, 2))
    assert shared.flops == alone.flops / 2
    # Their weights are what the caller says; states, keys and logits are halved.
    assert shared.bytes - 3_700_000_000 == pytest.approx((alone.bytes - 3_700_000_000) / 2)


def test_a_chunk_computes_no_logits():
    chunk = prefill_work(CONFIG, SIZES, 32_768, 1, MODEL_BYTES)
    matrices = 2 * 512 * MODEL_BYTES["decoder"] / 2
    # The delta rule and attention add to the products with weights; the head's would add 37 %.
    assert matrices < chunk.flops < 1.37 * matrices
    keys = 6 * 2 * 2 * 256 * 2
    assert chunk.bytes == MODEL_BYTES["decoder"] + keys * (16_384 + 512)


def test_the_tower_multiplies_by_its_weights_and_lets_all_patches_of_an_image_meet():
    tower, weights = CONFIG.vision, 2 * 331_000_000
    small, large = (tower_work(tower, patches, patches, weights) for patches in (4096, 65_536))
    attention = 4 * tower.depth * tower.hidden_size * (65_536**2 - 16 * 4096**2)
    assert large.flops - 16 * small.flops == pytest.approx(attention)
    # Of 16 frames, each patch meets a sixteenth.
    parted = tower_work(tower, 65_536, 4096, weights)
    assert large.flops - parted.flops == pytest.approx(4 * tower.depth * tower.hidden_size * 65_536**2 * 15 / 16)
    # The weights, but the positions' and what the merger joins, meet every patch.
    assert small.flops - 4 * tower.depth * tower.hidden_size * 4096**2 == pytest.approx(4096 * weights, rel=0.1)


def test_memory_is_that_of_the_greater_program():
    hbm = {"weights": 4, "states": 1, "pages": 5, "temporaries": 2, "peak": 12, "capacity": 20}
    for run, temporaries in ((1, 2), (3, 3)):
        tower = CompiledTower(run, features=2)
        found = with_tower(hbm, tower)
        assert found == hbm | {"features": 2, "temporaries": temporaries, "peak": 12 + temporaries}
        assert list(found)[-2:] == ["peak", "capacity"]


def test_an_image_and_a_video_are_told_beside_the_prompts():
    chunk = Work(1.97e12, 1e9)
    image = Sight("image", 1, 65_536, 16_384, Work(3.94e14, 1e9), chunk, 32)
    video = Sight("video", 768, 49_152, 16_128, Work(1.97e14, 1e9), chunk, 32)
    plan = a_plan(sights=(image, video))
    text = to_text(plan)
    assert "an image (65,536 patches, 16,384 tokens): at least 2.32 s, 2.00 s in the tower and 0.32 s in" in text
    assert "a video of 768 frames (49,152 patches, 16,128 tokens): at least 1.32 s, 1.00 s in the tower" in text
    report = plan.to_json()
    assert report["image"]["tokens"] == 16_384 and report["image"]["roofline_seconds"] == pytest.approx(2.0)
    assert report["video"]["prefill_seconds"] == pytest.approx(0.32)


def test_pages_that_fill_the_memory_are_counted_from_the_peak():
    plan = a_plan()
    assert plan.most_pages == 3328 + 300
    assert plan.most_cache_tokens == 8 * 3628 * 256
    assert plan.requests_at(3328) == 8 * 26 and plan.requests_at(plan.most_pages) == 8 * 28
    # More than all slots at the model's length are of no use.
    assert a_plan(max_length=65_536).most_pages == 8 * 256


def test_speed_is_a_range_from_full_to_half_length_with_all_drafts_accepted():
    plan = a_plan()
    assert plan.tokens_per_second == pytest.approx((64 / 0.02, 64 / 0.01))
    assert a_plan(engine=with_drafts(2)).tokens_per_second == pytest.approx((64 / 0.02, 3 * 64 / 0.01))
    # Only requests that have pages write.
    few = a_plan(engine=dataclasses.replace(SIZES, num_pages=3 * 128 + 1))
    assert few.writing == 24
    assert plan.limits == "hbm" and "3,200 to 6,400 tokens/s" in to_text(plan)


def test_what_is_sent_can_limit_a_step():
    sends = Work(1e10, 1e9, (Collective("all-reduce", 48, 10e9),))
    plan = a_plan(full=sends)
    assert plan.limits == "ici" and plan.to_json()["roofline_seconds"] == pytest.approx(10e9 / 200e9)
    assert "all-reduce 48 x" in to_text(plan)


def test_what_does_not_fit_says_so_and_has_no_times():
    hbm = a_plan().hbm | {"peak": a_plan().hbm["capacity"] + 2**30}
    lacking = a_plan(compiles=False, hbm=hbm)
    assert "does not fit, 1.00 GiB a chip are missing" in to_text(lacking)
    small = a_plan(engine=dataclasses.replace(SIZES, num_pages=100))
    assert "no request reaches 32,768 tokens" in to_text(small)
    for plan in (lacking, small):
        report = plan.to_json()
        assert report["limits"] == "memory" and not report["fits"] and "tokens_per_second" not in report


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["v5e:3x9x2x2"], ["topology", "unknown"]),
        (["v5e-8"], ["unknown", "Did you mean v5e:2x4?"]),
        (["v5e:2x4", "--preset", "3b"], ["3b", "0.8b"]),
        (["v5e:2x4", "--model", "Qwen/Qwen3.5-3B"], ["--model", "Qwen/Qwen3.5-2B"]),
        (["v5e:2x4", "--mesh.data", "4"], ["4 devices", "has 8", "--mesh.tensor"]),
        (["v5e:2x4", "--mesh.tensor", "3"], ["6 devices", "has 8"]),
        (["v5e:2x4", "--mesh.fsdp", "0"], ["--mesh.fsdp", "at least 1"]),
        (["v5e:2x4", "--slots", "12"], ["--slots", "multiple of 8", "such as 16"]),
        (["v5e:2x4", "--length", "300000"], ["--length", "262144"]),
        (["v5e:2x4", "--speculative-tokens", "17"], ["--speculative-tokens", "0 to 16"]),
        (["v5e:2x4", "--draft-vocabulary", "300000"], ["--draft-vocabulary", "248320"]),
        (["v5e:2x4", "--patches", "-1"], ["--patches -1", "below 0"]),
        (["v5e:2x4", "--patches", "65536", "--length", "16384"], ["--patches 65536", "16384 tokens", "--length 16384"]),
    ],
)
def test_wrong_input_ends_in_one_line_before_anything_is_compiled(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr("qwen35_jax.planning.decode.compile_abstract", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(SystemExit, match="2"):
        main(["plan", *arguments])
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(word in message for word in words), message


@pytest.fixture
def shapes_in_the_place_of_arrays():
    """Takes off the checks of array types: a plan's dataclasses hold shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("shapes_in_the_place_of_arrays")
def test_the_real_programs_compile_for_a_tpu_and_are_accounted_for(tmp_path, capsys):
    target = tmp_path / "plan.json"
    main(["plan", "v5e:2x2", "--preset", "tiny", "--length", "1024", "--slots", "8", "--json", str(target)])
    report = json.loads(target.read_text())
    hbm = report["hbm"]
    out = capsys.readouterr().out
    assert report["fits"] and "v5e:2x2 (4 chips, data=4): fits" in out
    assert sum(hbm[name] for name in ("weights", "states", "pages", "temporaries")) == hbm["peak"] < hbm["capacity"]
    # Two layers, two key heads of 32 in bfloat16; every request may get as long as the model allows: 4,096 tokens.
    assert hbm["pages"] == (2 * 4096 + 256) * 2 * 2 * 2 * 32 * 2 and report["requests"] == 8 * 4
    assert 0 < hbm["temporaries"] < 2**28
    # Devices that share out the slots have nothing to tell each other but whether somebody still writes.
    assert sum(sent["bytes"] for sent in report["collectives"]) < 100_000
    assert "sent by a chip in a prompt's chunk: nothing" in out
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "v5e:2x2", "--json", str(target)])
    assert "exists" in capsys.readouterr().err


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("shapes_in_the_place_of_arrays")
def test_the_programs_of_images_compile_for_a_tpu(tmp_path):
    target = tmp_path / "plan.json"
    sizes = ["--preset", "tiny", "--length", "1024", "--slots", "8", "--speculative-tokens", "2", "--patches", "300"]
    main(["plan", "v5e:2x2", *sizes, "--json", str(target)])
    report = json.loads(target.read_text())
    hbm = report["hbm"]
    parts = ("weights", "states", "pages", "features", "temporaries")
    assert report["fits"] and sum(hbm[name] for name in parts) == hbm["peak"] < hbm["capacity"]
    # Two times 128 vectors of 64 values in bfloat16: what is read and what is kept.
    assert hbm["features"] == 2 * 128 * 64 * 2 and report["image"]["tokens"] == 128


@needs_libtpu
@pytest.mark.slow
@pytest.mark.usefixtures("shapes_in_the_place_of_arrays")
@pytest.mark.parametrize("patches", [0, 65_536])
def test_the_plans_in_the_documentation_are_those_of_today(patches, capsys):
    main(["plan", "v5e:2x4", *(["--patches", str(patches)] if patches else [])])
    printed = capsys.readouterr().out.splitlines()
    page = (Path(__file__).parents[2] / "docs" / "generating.md").read_text()
    blocks = (part.partition("```")[0] for part in page.split("```text\n")[1:])
    [block] = [block for block in blocks if block.startswith("v5e:2x4") and ("features" in block) == bool(patches)]
    assert [line for line in block.splitlines() if line != "..." and line not in printed] == []


def test_a_model_without_an_mtp_head_is_not_asked_to_draft():
    pytest.importorskip("libtpu")
    tiny = PRESETS["tiny"]
    text = dataclasses.replace(tiny.text, mtp=dataclasses.replace(tiny.text.mtp, num_hidden_layers=0))
    with pytest.raises(ValueError, match="no MTP head"):
        plan_decode(dataclasses.replace(tiny, text=text), "v5e:1x1", Workload(length=64, speculative_tokens=1))
