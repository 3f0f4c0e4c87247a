"""The planner agrees with DeepSpeed's estimator, and its assumptions can be replaced."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from ssd_ray import recipes
from ssd_ray.artifacts.dataset_facts import LengthHistogram, SequenceFacts
from ssd_ray.cli.plan import as_json, origin, recipe_for
from ssd_ray.errors import UserError
from ssd_ray.models.quantized import to_bfloat16
from ssd_ray.planner.assumptions import assumptions
from ssd_ray.planner.clusters import GIB, plan_training
from ssd_ray.planner.tables import plain, plan_tables
from ssd_ray.training.data.health import length_edges
from ssd_ray.training.model.sequence_parallel import check_heads
from tests.support.machines import gpus
from tests.support.planner_cases import MODELS, UNPACKED, model_of, plan_of

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from planner_hours import CASES, draw, simulated
from planner_table import CLUSTERS, MEMORY, cell


def test_the_smallest_clusters_of_the_papers_models_are_found() -> None:
    smallest = {name: plan_of(name).smallest for name in MODELS}
    assert all(smallest.values())
    assert smallest["qwen3-4b-instruct"].num_workers <= 8  # type: ignore[union-attr]
    assert smallest["qwen3-30b-instruct"].num_workers == 16  # type: ignore[union-attr]
    for name in MODELS:
        fitting = [candidate.fits for candidate in plan_of(name).candidates]
        assert fitting == sorted(fitting)  # a larger cluster fits wherever a smaller one does


def test_a_recipe_that_fits_nowhere_gets_advice() -> None:
    plan = plan_of("qwen3-30b-instruct", assume=("gpu_memory_gib=30",))
    assert plan.smallest is None
    assert plan.remedy is not None
    assert plan.remedy[0].startswith("--set train.")
    assert plan.remedy[1].fits
    hopeless = plan_of("qwen3-30b-instruct", assume=("gpu_memory_gib=4",))
    assert hopeless.smallest is None
    assert hopeless.remedy is None


def test_every_advice_is_a_valid_recipe() -> None:
    """The router's loss has no gradient at ZeRO-3 with recomputation: advice keeps the stage."""
    asked = ["train.router_aux_loss=0.01", "train.zero_stage=2", "cluster.train_workers=8"]
    plan = plan_of("qwen3-30b-instruct", *asked)
    assert plan.smallest is None
    assert plan.remedy is not None
    changes, best = plan.remedy
    advised = recipes.load("qwen3-30b-instruct", [*asked, *changes.split("--set ")[1:]])
    assert advised.train.zero_stage == 2
    assert (
        plan_training(
            advised, model_of("qwen3-30b-instruct"), assumptions([])
        ).requested.bytes_needed
        == best.bytes_needed
    )
    never = plan_of("qwen3-30b-instruct", *asked, assume=("gpu_memory_gib=40",))
    assert never.remedy is None


@pytest.mark.parametrize(
    ("heads", "shared"),
    [((12, 3), 2), ((12, 4), 2), ((12, 2), 4), ((12, 3), 6), ((32, 8), 3), ((4, 4), 8)],
)
def test_planner_and_training_refuse_the_same_heads(heads: tuple[int, int], shared: int) -> None:
    model = dataclasses.replace(
        model_of("qwen3-4b-instruct"), heads=heads[0], key_value_heads=heads[1]
    )
    recipe = recipes.load(
        "qwen3-4b-instruct",
        [f"train.sequence_parallel_size={shared}", f"cluster.train_workers={shared}"],
    )
    config = SimpleNamespace(num_attention_heads=heads[0], num_key_value_heads=heads[1])
    config.get_text_config = lambda: config
    try:
        check_heads(config, recipe.train)
    except UserError:
        assert "cannot share" in plan_training(recipe, model, assumptions([])).requested.refusal
    else:
        assert "share" not in plan_training(recipe, model, assumptions([])).requested.refusal


def test_exceeding_the_models_context_names_a_remedy() -> None:
    long = ["model.max_model_len=100000", "prepare.max_length=100000", "sample.max_tokens=90000"]
    plan = plan_of("quickstart", *long)
    context = model_of("quickstart").max_positions
    warning, remedy = plan.warning.split(": ")
    assert warning.startswith(
        f"model.max_model_len 100000 is above the model's context of {context} tokens"
    )
    text = io.StringIO()
    Console(file=text, width=300).print(plan_tables(plan, "quickstart"))
    assert plan.warning in text.getvalue()
    assert plain(plan)["warning"] == plan.warning
    repaired = plan_of("quickstart", *long, *remedy.split("--set ")[1:])
    assert (repaired.warning, repaired.length) == ("", context)


def test_no_advice_exceeds_the_context(tmp_path: Path) -> None:
    short = ["model.max_model_len=512", "evaluate.max_tokens=32768", "prepare.max_length=4096"]
    recipe = recipes.load("quickstart", short)
    work = {
        each["verb"]: each["work"]
        for each in as_json(recipe, short, tmp_path / "run", assumptions([]))["steps"]
    }
    assert work["generate"].endswith(", up to 512 tokens each with its prompt")
    assert work["sample"].endswith(f", up to {recipe.sample.max_tokens} tokens each")
    assert "sequences of up to 512 tokens" in work["train"]


def _of_one_length(prompt: int, response: int) -> SequenceFacts:
    return SequenceFacts(
        rows=10,
        prompt_tokens=10 * prompt,
        response_tokens=10 * response,
        length_histogram=LengthHistogram(edges=(response, response + 1), counts=(10,)),
    )


def test_time_is_operations_over_speed_or_bytes_over_bandwidth() -> None:
    fast = ("node_gb_s=1e9", "network_gb_s=1e9")
    name = "llama-3.1-8b-instruct"
    # Two sequences a micro-batch, so that every worker computes equally long.
    recipe = recipes.load(
        name, [*UNPACKED, "train.micro_batch_tokens=6200", "prepare.max_length=6200"]
    )
    plan = plan_training(recipe, model_of(name), assumptions(fast), _of_one_length(600, 2500))
    eight, sixteen = (
        next(each for each in plan.candidates if each.num_workers == size) for size in (8, 16)
    )
    flops = plan.work.steps * plan.work.expected.flops
    assert eight.time is not None
    assert sixteen.time is not None
    assert eight.time.hours == pytest.approx(flops / (8 * 989e12 * 0.35) / 3600)
    assert eight.time.hours == pytest.approx(2 * sixteen.time.hours)
    assert eight.time.waiting == pytest.approx(0, abs=1e-6)
    assert eight.usd == pytest.approx(sixteen.usd)
    # 6 P operations a token and attention on top: between those and 1.3 times those at this length
    tokens = plan.work.steps * plan.work.expected.tokens
    assert 6 * 7.5e9 < flops / tokens < 1.3 * 6 * 8.03e9
    slow = plan_of(name, *UNPACKED, assume=("network_gb_s=1",)).candidates[-1].time
    assert slow is not None
    assert slow.bound == "network"
    assert slow.hours == pytest.approx(2500 * 8 * 8_030_261_248 * 31 / 32 / 1e9 / 3600)


@pytest.mark.parametrize(
    ("name", "workers", "overrides", "hours"),
    [
        ("qwen3-4b-instruct", 8, UNPACKED, 5.3),
        ("qwen3-30b-instruct", 16, UNPACKED, 16.2),
        ("qwen3-30b-instruct", 32, UNPACKED, 16.2),
        ("qwen3-30b-instruct", 16, (), 2.8),
    ],
)
def test_hours_are_those_of_the_slowest_worker(
    name: str, workers: int, overrides: tuple[str, ...], hours: float
) -> None:
    """Hours of an independent simulation: answers of 2,000 tokens on average, 2 % at the limit."""
    lengths = ("mean_response_tokens=2000", "capped_share=0.02", "gpu_memory_gib=1000")
    time = plan_of(
        name, f"cluster.train_workers={workers}", *overrides, assume=lengths
    ).requested.time
    assert time is not None
    assert time.hours == pytest.approx(hours, rel=0.15)
    # One GPU for each sequence of the batch waits most: for the longest one.
    assert time.waiting > 0.7 or not overrides


def test_the_plan_is_near_a_simulation_layer_by_layer() -> None:
    """Cases of `benchmarks/planner_hours.py`, with fewer steps."""
    lengths = ("capped_share=0.02", "gpu_memory_gib=1000")
    assumed = assumptions(lengths)
    for name, workers, overrides in CASES[::3]:
        recipe = recipes.load(name, [*overrides, f"cluster.train_workers={workers}"])
        answers = draw(np.random.default_rng(1), 100 * 32, assumed, 65536 - 600)
        expected = simulated(recipe, assumed, answers.reshape(-1, 32))
        time = plan_training(recipe, model_of(name), assumed).requested.time
        assert time is not None
        assert time.hours == pytest.approx(expected, rel=0.15), (name, workers)


def test_a_cluster_that_does_not_fit_has_no_hours() -> None:
    small = plan_of("qwen3-4b-instruct").candidates[0]
    assert not small.fits
    assert (small.time, small.most, small.usd) == (None, None, None)


def test_float32_has_a_peak_of_its_own() -> None:
    fast = ("node_gb_s=1e9", "network_gb_s=1e9", "gpu_memory_gib=1000")
    half, full, other = (
        plan_of(
            "llama-3.1-8b-instruct", *UNPACKED, f"train.dtype={dtype}", assume=(*fast, *more)
        ).requested.time
        for dtype, more in (
            ("bfloat16", ()),
            ("float32", ()),
            ("float32", ("peak_tflops_float32=494.5",)),
        )
    )
    assert half is not None
    assert full is not None
    assert other is not None
    assert full.hours == pytest.approx(half.hours * 989 / 67)
    assert other.hours == pytest.approx(2 * half.hours)


def test_each_unpacked_sequence_costs_an_exchange() -> None:
    # Short answers: one micro-step holds the complete batch if it is packed.
    slow = ("network_gb_s=1", "node_gb_s=1", "capped_share=0", "mean_response_tokens=400")
    share = "train.sequence_parallel_size=4"
    packed = (share, "train.packing=true", "train.attention=flash_attention_2")
    alone, together = (
        plan_of("qwen3-4b-instruct", *set_, assume=slow).candidates[3].time
        for set_ in ((*UNPACKED, share), packed)
    )
    assert alone is not None
    assert together is not None
    parameters = model_of("qwen3-4b-instruct").parameters
    assert together.hours == pytest.approx(
        2500 * 8 * parameters * 7 / 8 / 1e9 / 3600
    )  # one micro-step holds the complete batch
    assert alone.hours == pytest.approx(
        16 * together.hours
    )  # two groups of four workers, sixteen sequences each


def test_a_finished_data_set_replaces_what_was_assumed() -> None:
    recipe, model = recipes.load("qwen3-4b-instruct"), model_of("qwen3-4b-instruct")
    histogram = LengthHistogram(edges=(4000, 5000, 6000), counts=(5, 5))
    counted = SequenceFacts(
        rows=10, prompt_tokens=1000, response_tokens=50_000, length_histogram=histogram
    )
    work = plan_training(recipe, model, assumptions([]), counted).work
    assert work.measured
    assert work.expected.tokens == pytest.approx(32 * 5100)


def test_the_cost_of_mixed_lengths_is_the_sum_of_their_costs() -> None:
    """Bins are those of `prepare`; their width allows for an error of two percent."""
    recipe, model = recipes.load("qwen3-4b-instruct"), model_of("qwen3-4b-instruct")
    lengths = np.random.default_rng(0).lognormal(8.5, 1.0, 2000).clip(1, 60_000).astype(np.int64)
    edges = length_edges(lengths)
    counts = np.histogram(lengths, bins=edges)[0].tolist()
    counted = SequenceFacts(
        rows=2000,
        prompt_tokens=2000 * 100,
        response_tokens=int(lengths.sum()),
        length_histogram=LengthHistogram(edges=tuple(edges), counts=tuple(counts)),
    )
    work = plan_training(recipe, model, assumptions([]), counted).work
    exact = 32 * np.mean([model.flops(100, length) for length in lengths.tolist()])
    assert work.expected.flops == pytest.approx(exact, rel=0.02)
    assert 32 * model.flops(100, round(lengths.mean())) < 0.8 * exact
    assert work.expected.tokens == pytest.approx(32 * (100 + lengths.mean()))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("speed=1", "--assume 'speed=1' is not NAME=VALUE with one of gpu_memory_gib, "),
        ("gpu_mem_gib=80", ": did you mean gpu_memory_gib=VALUE?"),
        ("mfu_moe", "--assume 'mfu_moe' is not NAME=VALUE with one of "),
        ("mfu_moe=2", "--assume mfu_moe=2: use a number less than or equal to 1"),
        ("gpu_memory_gib=-80", "--assume gpu_memory_gib=-80: use a number greater than 0"),
        ("gpu_memory_gib=.inf", "--assume gpu_memory_gib=inf: use a finite number"),
        ("peak_tflops=fast", "--assume peak_tflops='fast': use a valid number"),
        ("host_cores=many", "--assume host_cores='many': use a valid integer"),
        ("host_cores=[", "--assume host_cores: '[' is not a YAML value: close"),
        ("host_cores=", "--assume host_cores=None: use a valid integer"),
        ("host_cores=2024-13-01", "'2024-13-01' looks like a date or a number and is none"),
    ],
)
def test_a_wrong_assumption_is_refused_in_one_sentence(override: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        assumptions([override])
    assert message in str(refused.value)
    assert "unable to parse" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", ["gate_proj", "w1"])
def test_adapters_on_missing_layers_are_refused(target: str) -> None:
    lora = f"train.lora={{rank: 16, target_modules: [q_proj, {target}]}}"
    with pytest.raises(
        UserError,
        match=f"{target}' is not a linear .* those are q_proj, k_proj, v_proj, o_proj; experts",
    ):
        plan_of("qwen3-30b-instruct", lora)


def test_adapters_save_less_than_a_third_of_the_time() -> None:
    # Without very long answers: attention costs adapters as much as complete weights.
    fast = ("node_gb_s=1e9", "network_gb_s=1e9", "capped_share=0")
    whole, lora = (
        plan_of("llama-3.1-8b-instruct", *set_, assume=fast).candidates[-1].time
        for set_ in ((), ("train.lora={rank: 16}",))
    )
    assert whole is not None
    assert lora is not None
    assert 2 / 3 < lora.hours / whole.hours < 0.75


def test_the_recipes_own_worker_count_is_always_planned() -> None:
    plan = plan_of("qwen3-4b-instruct", "cluster.train_workers=64", "train.global_batch_size=64")
    assert [candidate.num_workers for candidate in plan.candidates] == [1, 2, 4, 8, 16, 32, 64]
    assert plan.requested.num_workers == 64
    assert plan.requested.fits


@pytest.mark.parametrize("name", [name for name in recipes.shipped() if name != "quickstart"])
def test_every_paper_recipe_fits_as_shipped(
    name: str,
) -> None:
    plan = plan_of(name)
    assert plan.requested.fits
    assert {8, 16, 32} <= {candidate.num_workers for candidate in plan.candidates}
    text = io.StringIO()
    Console(file=text, width=160).print(plan_tables(plan, name))
    heading = next(
        line.split() for line in text.getvalue().splitlines() if line.startswith(" GPUs")
    )
    assert heading[-3:] == ["8", "2×8", "4×8"]
    assert ("the recipe as it is" in text.getvalue()) != ("and the recipe's own" in text.getvalue())


def test_a_section_shows_the_source_of_its_set_fields() -> None:
    recipe = recipes.load("quickstart")
    assert origin(recipe, "train.steps", []) == recipe.sources["train"]
    assert origin(recipe, "train.packing", []) == "default"
    assert (
        origin(recipes.load("qwen3-4b-instruct"), "train.max_grad_norm", [])
        == "not stated in the paper"
    )  # a field's own
    whole = ["train.lora={rank: 8}"]
    lora = recipes.load("quickstart", whole)
    assert [origin(lora, f"train.lora.{name}", whole) for name in ("rank", "alpha")] == [
        "--set",
        "default",
    ]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from ssd_ray.cli.app import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        # Without the COLUMNS that readline sets behind Python's back.
        env=dict(os.environ),
    )


def test_the_command_prints_a_plan_and_the_same_as_json(tmp_path: Path) -> None:
    eight = ("--set", "cluster.train_workers=8", "--set", "train.zero_stage=2")
    text = _run(
        "plan",
        "qwen3-30b-instruct",
        *eight,
        "--out",
        str(tmp_path / "run"),
        "--assume",
        "usd_per_gpu_hour=3",
    ).stdout
    reasons = "not a multiple of 8 workers per sequence, too little memory"
    assert f"fits on none of these ({reasons})" in text
    assert "it would with --set train.zero_stage=3 --set train.offload=optimizer: 8 GPUs" in text
    assert "ZeRO-2 on 8 cuda workers" in " ".join(text.split())
    assert "--assume, in place of 2.5: Price of one GPU" in text
    text = _run("plan", "qwen3-30b-instruct", *eight[:2], "--out", str(tmp_path / "run")).stdout
    assert "smallest cluster that fits: 2×8 GPUs" in text
    assert (
        "with cluster.train_workers=8 (too little memory): --set cluster.train_workers=16" in text
    )
    assert "or with --set train.offload=optimizer: 8 GPUs" in text
    assert "30.5 B parameters, 3.35 B active" in text
    plan_as_json: dict[str, Any] = json.loads(
        _run("plan", "qwen3-30b-instruct", "--json", "--assume", "mfu_moe=0.2").stdout
    )
    assert plan_as_json["training"]["assumptions"]["mfu_moe"] == 0.2
    assert plan_as_json["training"]["smallest"] == 16
    clusters = {each["workers"]: each for each in plan_as_json["training"]["clusters"]}
    assert sum(clusters[8]["bytes"].values()) < clusters[8]["bytes_needed"]
    assert clusters[8]["bytes_needed"] > 79 * GIB
    assert {step["verb"] for step in plan_as_json["steps"]} >= {"sample", "train", "report"}
    plan = plain(plan_of("quickstart"))
    assert plan["clusters"][0]["hours"] is None
    json.dumps(plan)


@pytest.mark.parametrize("source", ["some-one/a-model", "directory"])
@pytest.mark.parametrize("options", [(), ("--json",), ("--cluster", "cluster.yaml")])
def test_a_plan_without_an_answer_is_no_success(
    source: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    if source == "directory":
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
        source = str(tmp_path)
    root = Path(__file__).parents[2]
    options = tuple(str(root / each) if each == "cluster.yaml" else each for each in options)
    out = str(tmp_path / "run")
    process = _run("plan", "quickstart", "--set", f"model.source={source}", "--out", out, *options)
    assert process.returncode == 2
    assert process.stderr.startswith("error: no plan for the training: ")
    assert process.stderr.count("\n") == 1
    # The rest of the plan is there.
    if "--json" in options:
        document = json.loads(process.stdout)
        assert document["training"] is None
        assert document["training_unknown"] in process.stderr
    else:
        assert "sample.temperature" in process.stdout
        assert "verdicts/ssd" in process.stdout
    assert ("groups of " in process.stdout) == ("--cluster" in options)


def test_a_plan_that_says_no_is_an_answer(tmp_path: Path) -> None:
    process = _run(
        "plan",
        "qwen3-30b-instruct",
        "--assume",
        "gpu_memory_gib=4",
        "--json",
        "--out",
        str(tmp_path),
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert json.loads(process.stdout)["training"]["smallest"] is None


def test_a_plan_loads_no_engine() -> None:
    code = (
        "import sys; from ssd_ray.cli import app\n"
        "try: app.main(['plan', 'qwen3-30b-instruct'])\n"
        "finally: print([name for name in ('torch', 'ray', 'transformers', 'deepspeed', 'numpy') "
        "if name in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    ("name", "number", "fitting"),
    [
        ("qwen3-4b-instruct", 1, "qwen3-4b-instruct-1gpu"),
        ("qwen3-4b-instruct-1gpu", 8, "qwen3-4b-instruct"),
        ("qwen3-30b-instruct", 8, "qwen3-30b-instruct-8gpu"),
        ("qwen3-30b-thinking", 16, "qwen3-30b-thinking"),
        ("qwen3-30b-instruct", 4, ""),
        ("qwen3-4b-instruct", 0, ""),
    ],
)
def test_the_shipped_recipe_for_a_machine_is_named(name: str, number: int, fitting: str) -> None:
    assert recipe_for(recipes.load(name), gpus(number).visible, assumptions([])) == fitting
    changed = recipes.load(name, ["sample.temperature=0.5"])
    assert recipe_for(changed, gpus(number).visible, assumptions([])) == ""


def test_a_plan_says_that_mxfp4_cannot_be_trained(tmp_path: Path) -> None:
    text = " ".join(_run("plan", "gpt-oss-20b-high", "--out", str(tmp_path / "run")).stdout.split())
    assert "no training as it is: openai/gpt-oss-20b holds weights in mxfp4" in text
    assert "C(dequantize=True)" in text
    assert "--set model.source=./gpt-oss-20b-bf16" in text
    command = to_bfloat16("openai/gpt-oss-20b", "there")
    code = command.removeprefix('python -c "').removesuffix('"')
    assert '"' not in code
    compile(code, "command", "exec")


def test_offloaded_steps_take_time_by_cores_and_memory_bandwidth() -> None:
    """30B on 8 GPUs: each worker updates 3.8 billion parameters in every step."""
    slow, fast, none = (
        plan_of("qwen3-30b-instruct-8gpu", *set_, assume=assume).requested.time
        for set_, assume in (
            ((), ("host_cores=9",)),
            ((), ("host_cores=97",)),
            (("train.offload=none",), ("gpu_memory_gib=1000",)),
        )
    )
    assert slow is not None
    assert fast is not None
    assert none is not None
    parameters = model_of("qwen3-30b-instruct").parameters
    assert slow.updating == pytest.approx(2500 * parameters / 8 / 350e6 / 3600)
    assert fast.updating == pytest.approx(2500 * parameters * 30 / 300e9 / 3600)
    assert none.updating == 0
    assert slow.hours == pytest.approx(none.hours + slow.updating)


def test_divided_experts_need_workers_that_divide_them() -> None:
    plain = ("train.offload=none", *UNPACKED)
    divided = (*plain, "train.expert_parallel_size=8")
    plan, whole = (plan_of("qwen3-30b-instruct", *set_) for set_ in (divided, plain))
    refusals = [candidate.refusal for candidate in plan.candidates[:3]]
    assert refusals == ["not a multiple of 8 workers that divide experts"] * 3
    assert "too little memory" in [candidate.refusal for candidate in whole.candidates[:3]]
    dense = plan_of("qwen3-4b-instruct", *divided, "cluster.train_workers=8")
    assert dense.requested.refusal == "8 workers cannot divide the experts of this model"


def test_divided_experts_are_sent_less_than_gathered() -> None:
    slow = ("network_gb_s=1", "node_gb_s=1", "capped_share=0", "mean_response_tokens=400")
    choices = (
        "train.offload=none",
        *UNPACKED,
        "train.micro_batch_tokens=100000",
        "train.gradient_checkpointing=false",
        "cluster.train_workers=16",
    )
    whole, divided = (
        plan_of(
            "qwen3-30b-instruct",
            *choices,
            f"train.expert_parallel_size={size}",
            assume=(*slow, "gpu_memory_gib=10000"),
        ).requested.time
        for size in (1, 16)
    )
    assert whole is not None
    assert divided is not None
    model = model_of("qwen3-30b-instruct")
    # Gathered twice in 2 bytes, reduced in 4: all parameters, or all but experts.
    moved = 2500 * 8 * 15 / 16 / 1e9 / 3600
    assert whole.hours == pytest.approx(moved * model.parameters)
    rest = model.parameters - model.parts["experts"]
    assert divided.hours > moved * rest
    assert divided.hours < whole.hours


def test_workers_do_not_share_attention_with_sinks() -> None:
    plan = plan_of("gpt-oss-20b-high", "train.sequence_parallel_size=2")
    assert plan.requested.refusal == "attention sinks cannot be shared by workers"
    eight = plan_of("gpt-oss-20b-high", "cluster.train_workers=8")
    assert eight.remedy is not None
    assert eight.remedy[0] == "--set train.offload=optimizer"


def test_the_page_shows_hours_that_the_command_prints() -> None:
    """The shortest row of `benchmarks/planner_table.py`; hours are rounded for the page."""
    page = (Path(__file__).parents[2] / "docs" / "planner.md").read_text()
    assert "python benchmarks/planner_table.py" in page
    hours = page[page.index("python benchmarks/planner_table.py") :]
    row = next(line for line in hours.splitlines() if line.startswith("| qwen3-4b-instruct | "))
    printed = row.strip("| ").split(" | ")[1:]
    for (size, number), expected in zip(product(MEMORY, CLUSTERS), printed, strict=True):
        assumed = assumptions([f"gpu_memory_gib={MEMORY[size]}"])
        assert cell("qwen3-4b-instruct", number, assumed, 300) == expected
