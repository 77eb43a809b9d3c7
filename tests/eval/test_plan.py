"""Plans of evaluations: the arithmetic of a case by hand, what benchmarks are expected to take, wrong input."""

import dataclasses
import importlib.util
import json

import pytest

from eval import plan as planning
from eval.config import EvalConfig
from eval.expected import DOCUMENTS, Expected, expected_documents, expected_prompt, expected_response
from eval.plan import PlanConfig, load_of, main
from eval.plan_report import Load, TaskPlan, to_json, to_text
from eval.tasks import TASKS, get_task
from examples.quickstart.tokenizer import build_tiny_tokenizer
from qwen35_jax.hf.source import ModelSource
from qwen35_jax.inference.sizes import EngineSizes
from qwen35_jax.planning.decode_report import Work
from qwen35_jax.planning.devices import find_device
from qwen35_jax.presets import PRESETS
from tests.conftest import REPO
from tests.eval.conftest import write_rows
from tests.eval.vision.pictures import png, write_parquet

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)
RUN_FILE = str(REPO / "configs" / "eval_2b.py")
SIZES = EngineSizes(
    slots=64, shards=8, num_pages=3329, page_size=256, most_pages=1024, chunk=512, small_chunk=64, num_drafts=0,
    steps_per_call=32, draft_vocabulary=None,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FakeLayout:
    """Eight v5e; a step moves 8.19 MB for each token that a slot holds beside 819 MB, a chunk takes 10 ms."""

    topology: str = "v5e:2x4"
    engine: EngineSizes = SIZES
    num_devices: int = 8
    mesh = {"data": 8, "fsdp": 1, "context": 1, "tensor": 1}  # noqa: RUF012
    device = find_device("v5e")

    def model_bytes(self):
        return {"decoder": 600_000_000, "head": 219_000_000, "mtp": 1}

    def step(self, length):
        return Work(1.0, 819e6 + 8.19e6 * length)

    def chunk(self, length):
        return Work(1.97e12, 1.0)

    def look(self, patches, frame_patches):
        return Work(1.97e8 * patches / (1 if frame_patches == patches else 2), 1.0)


LOAD = Load("gsm8k", "thinking", Expected(1_280, "a table"), 2, Expected(600, "x"), Expected(400, "x"), limit=2_800)


def test_the_arithmetic_of_one_case_by_hand():
    plan = TaskPlan(LOAD, FakeLayout(), 1.0)
    assert (LOAD.responses, LOAD.tokens) == (2_560, 1_024_000)
    # 64 slots; each holds 600 + 400 tokens: 819 MB + 1,000 x 8.19 MB at 819 GB/s.
    assert (plan.writing, plan.step_seconds) == (64, pytest.approx(11e-3))
    assert plan.rate == pytest.approx(64 / 11e-3)
    assert plan.write_seconds == pytest.approx(176)
    # 600 tokens are two chunks of 10 ms, eight at a time.
    assert plan.read_seconds == pytest.approx(2_560 * 2 * 10e-3 / 8)
    # One response a chip of eight slots holds 600 + 2,800 / 2 tokens: as many as 250 in each slot.
    assert plan.last_step_seconds == pytest.approx(3.5e-3)
    assert plan.tail_seconds == pytest.approx(2_800 * 3.5e-3)
    assert plan.hours == pytest.approx((182.4 / 3600, 192.2 / 3600))
    plans = {("v5e:2x4", "thinking"): [plan, plan]}
    [entry] = json.loads(json.dumps(to_json(plans, 1.5)))
    # Two such tasks are written together: one tail.
    assert entry["hours"] == pytest.approx({"low": 364.8 / 3600, "high": 374.6 / 3600})
    assert entry["chip_hours"]["high"] == pytest.approx(8 * 374.6 / 3600)
    assert entry["price"]["low"] == pytest.approx(1.5 * 8 * 364.8 / 3600)
    text = to_text(plans, 1.5)
    for line in (
        "tokens: 1,280 x 2 repeats x 400 = 1,024,000",
        "64 / 11.00 ms = 5,818 tokens/s",
        "writing: 1,024,000 / 5,818 = 0.0489 h",
        "reading: 2,560 x 2 chunks x 10.00 ms / 8 at a time = 0.00178 h",
        "tail: 2,800 x 3.50 ms = 0.00272 h",
        "hours: 0.0507 to 0.0534",
        "all: 2,048,000 tokens, 0.101 to 0.104 h x 8 chips = 0.811 to 0.832 chip-hours",
        "price: x 1.5 a chip-hour = 1.22 to 1.25",
    ):
        assert line in text
    assert "price" not in to_text(plans, None) and "price" not in to_json(plans, None)[0]


@pytest.mark.parametrize(("frame_patches", "milliseconds"), [(None, 4.0), (100, 2.0)])
def test_the_tower_reads_every_question_once(frame_patches, milliseconds):
    load = dataclasses.replace(LOAD, patches=Expected(4_000, "y"), frame_patches=frame_patches)
    plan, blind = TaskPlan(load, FakeLayout(), 1.0), TaskPlan(LOAD, FakeLayout(), 1.0)
    # 4,000 patches of 0.197 GFLOP at 197 TFLOP/s; 1,280 documents, eight at a time, whatever the repeats.
    assert plan.see_seconds == pytest.approx(1_280 * milliseconds * 1e-3 / 8)
    assert plan.hours.low - blind.hours.low == pytest.approx(plan.see_seconds / 3600)
    assert f"seeing: 1,280 x {milliseconds:.2f} ms of the tower / 8 at a time" in to_text({("t", "m"): [plan]}, None)
    assert plan.to_json()["patches"] == {"value": 4_000, "source": "y"} and blind.to_json()["patches"] is None
    assert "tower" not in to_text({("t", "m"): [blind]}, None)


def test_half_of_the_peak_takes_twice_the_time():
    whole, half = (TaskPlan(LOAD, FakeLayout(), share) for share in (1.0, 0.5))
    assert half.hours == pytest.approx(whole.hours.times(2))


def test_only_requests_with_pages_write_and_no_more_than_there_are():
    few = dataclasses.replace(SIZES, num_pages=17)
    # Eight shards with 16 pages of 256 tokens hold 32 requests of 1,000 tokens; the step has half the tokens.
    plan = TaskPlan(LOAD, FakeLayout(engine=few), 1.0)
    assert (plan.writing, plan.step_seconds) == (32, pytest.approx(6e-3))
    short = dataclasses.replace(LOAD, documents=Expected(5, "x"), repeats=1)
    assert TaskPlan(short, FakeLayout(), 1.0).writing == 5


def test_five_language_benchmarks_of_the_2b_take_415_million_tokens():
    tasks = ("mmlu_pro", "mmlu_redux", "ceval", "supergpqa", "ifeval")
    tokens = sum(
        expected_documents(task, None).value * expected_response(task, "thinking", "chat", "2b", 32_768).value
        for task in tasks
    )
    assert sum(next(iter(DOCUMENTS[task].values())) for task in tasks) == 46_148
    assert tokens == pytest.approx(415e6, rel=0.01)


def test_every_benchmark_has_its_documents():
    assert DOCUMENTS.keys() == {*TASKS} - {"qa"}


def test_figures_say_where_they_come_from():
    assert expected_documents("ceval", "test") == (12_342, "split test of the published data")
    assert expected_documents("ceval", None).value == 1_346 and expected_documents("qa", None) is None
    assert expected_response("ifeval", "thinking", "chat", "4b", 32_768).source.endswith("olmo-eval#399")
    assert expected_response("ifeval", "thinking", "chat", "0.8b", 32_768).source.startswith("assumption")
    assert expected_response("ifeval", "thinking", "chat", "4b", 4_096) == (
        4_096, "the longest allowed; without it 15,600"
    )  # fmt: skip
    assert expected_prompt("lm-eval", 5).value > 10 * expected_prompt("card", 0).value
    # The mean of a length that is cut at 32,768 and else at the median at most.
    assert expected_response("ifeval", "thinking", "chat", "9b", 32_768).value == pytest.approx(
        0.192 * 32_768 + 0.808 * 4_268, abs=1
    )


def plan_of(**changes):
    return PlanConfig(EvalConfig(model=ModelSource("Qwen/Qwen3.5-2B"), tasks=("gsm8k",), protocol="card", **changes))


def test_what_is_given_replaces_what_is_expected():
    config, model, task = plan_of(mode="thinking", repeats=3), PRESETS["2b"], get_task("gsm8k")
    load = load_of(config, task, model, "thinking")
    assert (load.documents.value, load.repeats, load.limit) == (1_319, 3, 32_768)
    given = load_of(dataclasses.replace(config, mean_tokens=50, prompt_tokens=70), task, model, "thinking")
    assert (given.prompt, given.response) == ((70, "--prompt-tokens"), (50, "--mean-tokens"))
    limited = load_of(plan_of(mode="thinking", limit=9, thinking_budget=100), task, model, "thinking")
    assert limited.documents == (9, "--limit 9 of 1,319") and limited.response.value == 800


def test_documents_and_prompts_are_counted_where_data_and_tokenizer_are_at_hand(tmp_path):
    rows = [{"question": "1 + 1?", "answer": "2\n#### 2"}, {"question": "1 + 1 + 1?", "answer": "3\n#### 3"}]
    path = write_rows(tmp_path / "data" / "gsm8k" / "test.jsonl", rows)
    model = build_tiny_tokenizer(["user assistant\n"], tmp_path / "model", vocab_size=300)
    config = plan_of(data_dir=str(tmp_path / "data"))
    counted = load_of(config, get_task("gsm8k"), PRESETS["2b"], "non_thinking")
    assert counted.documents == (2, f"counted in {path.parent}") and counted.prompt.source.startswith("assumption")
    local = dataclasses.replace(config, run=dataclasses.replace(config.run, model=ModelSource(str(model))))
    measured = load_of(local, get_task("gsm8k"), PRESETS["2b"], "non_thinking").prompt
    assert measured.source == "counted in the prompts" and 90 < measured.value < 130


def test_the_patches_of_images_are_counted_as_the_model_sees_them(tmp_path):
    config = PlanConfig(EvalConfig(model=ModelSource("Qwen/Qwen3.5-2B"), tasks=("mathvista",), protocol="card"))
    task = get_task("mathvista")
    assumed = load_of(config, task, PRESETS["2b"], "non_thinking")
    assert (assumed.patches.value, assumed.prompt.value, assumed.frame_patches) == (4_000, 1_150, None)
    row = {"question": "q", "question_type": "free_form", "answer_type": "integer", "answer": "1"}
    pixels = {"wide": (640, 320), "small": (8, 8)}
    rows = [row | {"pid": name, "image": {"bytes": png(size=size), "path": ""}} for name, size in pixels.items()]
    write_parquet(tmp_path / "mathvista" / "testmini.parquet", rows)
    run = dataclasses.replace(config.run, data_dir=str(tmp_path))
    counted = load_of(dataclasses.replace(config, run=run), task, PRESETS["2b"], "non_thinking")
    # 40 x 20 patches of 16 x 16 pixels; the small one is enlarged to 65,536 pixels, which are 256 patches.
    assert counted.patches == ((800 + 256) // 2, "counted in the images")
    assert (counted.documents.value, counted.prompt.value) == (2, 528 // 4 + 150)
    video = load_of(config, get_task("videomme"), PRESETS["2b"], "thinking")
    assert (video.patches.value, video.frame_patches) == (37_632, 147)


def test_a_model_without_a_tower_has_no_plan_of_images(monkeypatch):
    blind = dataclasses.replace(PRESETS["2b"], vision=None, architecture="Qwen3_5ForCausalLM")
    monkeypatch.setattr(planning, "find_config", lambda path: blind)
    run = EvalConfig(model=ModelSource("m"), tasks=("gsm8k", "mmmu"), protocol="card")
    with pytest.raises(ValueError, match="m has no vision tower, which mmmu need"):
        planning.make_plans(PlanConfig(run))


@needs_libtpu
def test_a_vision_benchmark_is_planned_with_its_tower(capsys):
    main([str(REPO / "configs" / "eval_vision_2b.py"), "--tasks", "mmmu", "ocrbench", "--topology", "v5e:1x1"])
    told = capsys.readouterr().out
    assert told.count("ms of the tower / 1 at a time") == 2 and "an image of a megapixel" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology", "v5e:9"], "topology 'v5e:9' is unknown"),
        (["--topology", "v5litepod-8"], "Did you mean v5e:2x4?"),
        (["--topology"], "topology names no chips"),
        (["--tasks", "gsm9k"], "task 'gsm9k' does not exist"),
        (["--tasks", "qa"], "how many documents qa has is not known; give --data-dir"),
        (["--tasks", "mmlu", "--split", "dev"], "how many documents mmlu has in split dev is not known"),
        (["--price-per-chip-hour", "-1"], "--price-per-chip-hour -1.0; give a price from 0"),
        (["--price-per-chip-hour", "cheap"], "cheap"),
        (["--mean-tokens", "0"], "--mean-tokens 0; give at least 1"),
        (["--share-of-peak", "1.5"], "--share-of-peak 1.5; give a share"),
        (["--model.path", "Qwen/Qwen3.5-3B"], "neither a local folder nor a published size"),
        (["--style", "likelihood"], "leave out --style likelihood"),
        (["--modes", "loud"], "loud"),
        (["--json", RUN_FILE], "exists; name a new file"),
        (["--topologies", "v5e:2x4"], "Did you mean --topology?"),
        (["--data-dir", "nowhere"], "nowhere/mmlu_pro is not a folder"),
    ],
)
def test_wrong_commands_end_in_one_line(flags, message, capsys, monkeypatch):
    monkeypatch.setattr(planning, "lay_out", reach_topology)
    with pytest.raises(SystemExit) as stop:
        main([RUN_FILE, *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def reach_topology(model, topology, workload, mesh):
    """Looks the topology up, which is as far as a wrong command may come."""
    from qwen35_jax.planning.aot import topology_devices

    topology_devices(topology)
    pytest.fail("a wrong command was planned")


@needs_libtpu
def test_the_2b_on_eight_chips_is_as_fast_as_its_bytes_say(tmp_path, capsys):
    """32 requests a chip at 8,192 tokens move 3.8 + 2.4 + about 2 GB: 10 ms, 25,000 tokens a second in all."""
    out = tmp_path / "plan.json"
    flags = ["--slots", "250", "--modes", "thinking", "non_thinking", "--mean-tokens", "8042", "--json", str(out)]
    main([RUN_FILE, "--tasks", "gsm8k", *flags, "--price-per-chip-hour", "2"])
    thinking, short = json.loads(out.read_text())
    assert (thinking["mode"], short["mode"], thinking["chips"], thinking["slots"]) == (
        "thinking",
        "non_thinking",
        8,
        256,
    )
    [task] = thinking["tasks"]
    assert task["held"] == 8_192 and task["writing"] == 256
    assert task["step_bytes"] == pytest.approx(8.3e9, rel=0.02) and task["rate"] == pytest.approx(25_000, rel=0.02)
    assert task["tokens"] == 1_319 * 8_042
    assert thinking["price"]["low"] == pytest.approx(16 * task["tokens"] / task["rate"] / 3600, rel=0.01)
    assert "bound by hbm" in capsys.readouterr().out


@needs_libtpu
def test_a_response_that_does_not_fit_is_refused(capsys):
    with pytest.raises(SystemExit):
        main([RUN_FILE, "--model.path", "Qwen/Qwen3.5-9B", "--topology", "v5e:1x1"])
    assert "v5e:1x1 has room for" in capsys.readouterr().err
