"""Training refuses impossible input before any worker starts, with a remedy."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import ray

from ssd_ray import recipes
from ssd_ray.artifacts.shards import write_shard
from ssd_ray.cluster import room
from ssd_ray.cluster.growth import Growth
from ssd_ray.config import ClusterConfig, LoraConfig, Recipe, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.models import loading
from ssd_ray.pipeline import graph
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.training import Checkpoint
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Example
from ssd_ray.training import trainer
from ssd_ray.training.checks import check_model
from ssd_ray.training.job import Job
from ssd_ray.training.model.adapters import add_adapters
from ssd_ray.training.model.engine import process_environment


def _dataset(out: Path, *sequences: tuple[int, ...]) -> Path:
    rows = [
        Example(prompt_id=f"p{number}", sample_index=0, input_ids=ids, num_prompt_tokens=1)
        for number, ids in enumerate(sequences)
    ]
    write_shard(out, "part-00000", rows, Example)
    return out


def _train(
    dataset: Path,
    model: Path,
    out: Path,
    workers: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    **choices: Any,
) -> None:
    from ssd_ray.training.trainer import train

    job = Job(
        dataset=dataset,
        model=model,
        out=out,
        logs=out,
        train=TrainConfig(**{"dtype": "float32", "global_batch_size": 4, **choices}),
        cluster=ClusterConfig(device=device, train_workers=workers),
        seed=0,
    )
    train(job, LineProgress())


def test_a_model_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        _train(_dataset(tmp_path / "data", (3, 4)), tmp_path, tmp_path / "out")


def test_an_empty_data_set_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rows to train on; run prepare again"):
        _train(_dataset(tmp_path / "data"), tiny_llama, tmp_path / "out")


def test_ids_beyond_the_vocabulary_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"holds the token id 264, and the vocabulary of .* has 264 entries"
    ):
        _train(_dataset(tmp_path / "data", (3, 4), (3, 264)), tiny_llama, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds the token id -1"):
        _train(_dataset(tmp_path / "negative", (3, -1)), tiny_llama, tmp_path / "out")


def test_a_sequence_longer_than_the_context_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"a sequence of 4097 tokens, and the context of .* is 4096: set "
            r"prepare\.max_length=4096"
        ),
    ):
        _train(_dataset(tmp_path / "data", (3,) * 4097), tiny_llama, tmp_path / "out")


def test_a_complete_model_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssd_ray.training import loop

    (tmp_path / "resume" / "step-4").mkdir(parents=True)
    (tmp_path / "training.json").write_text(json.dumps({"steps": 5}))
    cluster, alone = (
        ClusterConfig(device="cpu"),
        SimpleNamespace(get_world_size=lambda: 1, get_world_rank=lambda: 0),
    )
    job = Job(
        dataset=tmp_path,
        model=tmp_path,
        out=tmp_path,
        logs=tmp_path,
        train=TrainConfig(),
        cluster=cluster,
        seed=0,
    )
    monkeypatch.setattr(loop.ray.train, "get_context", lambda: alone)
    loop.work({"job": job})  # started again after another worker was lost after the last step
    _train(tmp_path, tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["training.json"]


def test_a_data_set_without_a_response_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no response to train on, only masked sequences"):
        _train(_dataset(tmp_path / "data", (3,)), tiny_llama, tmp_path / "out")


def test_attention_that_transformers_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss"}))
    with pytest.raises(
        UserError,
        match=(
            r"'sdpa' cannot compute the attention of GptOssForCausalLM: set "
            r"train\.attention=flash"
        ),
    ):
        _train(_dataset(tmp_path / "data", (3, 4)), tmp_path, tmp_path / "out")
    assert recipes.load("gpt-oss-20b-high").train.attention == "flash_attention_3"


@pytest.mark.parametrize(("before", "now"), [(0, 2), (3, 0)])
def test_a_state_that_the_zero_stage_cannot_resume_is_refused(
    before: int, now: int, tiny_llama: Path, tmp_path: Path
) -> None:
    state = tmp_path / "out" / "resume" / "step-4" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"step": 4, "num_workers": 1, "zero_stage": before}))
    with pytest.raises(
        UserError,
        match=(
            rf"written with train\.zero_stage {before}, and {now} cannot read it: set "
            r"train\.zero_s"
        ),
    ):
        _train(_dataset(tmp_path / "data", (3, 4)), tiny_llama, tmp_path / "out", zero_stage=now)


def test_a_state_of_another_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    state = tmp_path / "out" / "resume" / "step-4" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(
        json.dumps({"step": 4, "model": "0123456789abcdef", "num_workers": 1, "zero_stage": 3})
    )
    with pytest.raises(
        UserError,
        match=r"resume holds a state of another model than .*llama: train that one, choose another",
    ):
        _train(_dataset(tmp_path / "data", (3, 4)), tiny_llama, tmp_path / "out")


def test_an_adapter_on_an_unsupported_layer_is_refused(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for name in ("lm_head", "query"):
        with pytest.raises(
            UserError,
            match=rf"'{name}' is not a linear layer of LlamaForCausalLM below its output head",
        ):
            add_adapters(model, LoraConfig(target_modules=("q_proj", name)), 0)


def test_samples_of_another_tokenizer_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "data", (3, 4))
    (dataset / "manifest.json").write_text(
        json.dumps({"facts": {"provenance": {"tokenizer_sha256": {"tokenizer.json": "another"}}}})
    )
    with pytest.raises(UserError, match="made with another tokenizer than that of"):
        _train(dataset, tiny_llama, tmp_path / "out")
    own = {"facts": {"provenance": {"tokenizer_sha256": loading.tokenizer_digests(tiny_llama)}}}
    dataset = _dataset(tmp_path / "own", (3, 264))
    (dataset / "manifest.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match="holds the token id 264"):  # the next mistake
        _train(dataset, tiny_llama, tmp_path / "out")


def test_workers_that_cannot_share_the_batch_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "data", (3, 4))
    with pytest.raises(UserError, match=r"global_batch_size 4 is not a multiple of the 3 workers"):
        _train(dataset, tiny_llama, tmp_path / "out", workers=3)
    with pytest.raises(
        UserError, match=r"train_workers 3 is not a multiple of train\.sequence_parallel_size 2"
    ):
        _train(dataset, tiny_llama, tmp_path / "out", workers=3, sequence_parallel_size=2)


def test_options_that_need_a_gpu_are_refused_on_a_cpu(tiny_llama: Path, tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "data", (3, 4))
    for choice in (
        {"offload": "optimizer"},
        {"loss_kernel": "liger"},
        {"attention": "flash_attention_2"},
    ):
        ((name, value),) = choice.items()
        with pytest.raises(UserError, match=rf"train\.{name} '{value}' needs cluster\.device=cuda"):
            _train(dataset, tiny_llama, tmp_path / "out", dtype="bfloat16", **choice)
    recipe = {
        "name": "r",
        "model": {"source": "."},
        "evaluate": {"arms": {"base": {"model": "base"}}},
    }
    with pytest.raises(ValueError, match=r"train\.offload 'optimizer' needs cluster\.device=cuda"):
        Recipe.model_validate(
            {**recipe, "train": {"offload": "optimizer"}, "cluster": {"device": "cpu"}}
        )


# Problems visible in the model's configuration and in packages, found before hours of sampling.
EARLY: dict[str, tuple[dict[str, Any], str]] = {
    "liger": (
        {"loss_kernel": "liger"},
        "loss_kernel is 'liger', and its package is not installed: pip install liger-kernel",
    ),
    "wandb": ({"trackers": ("wandb",)}, "trackers has 'wandb', and its package is not installed"),
    "flash 2": (
        {"attention": "flash_attention_2"},
        "neither package flash_attn nor kernels is installed: pip install kernels",
    ),
    "flash 3": (
        {"attention": "flash_attention_3"},
        "neither package flash_attn_interface nor kernels is installed",
    ),
    "heads": (
        {"sequence_parallel_size": 4},
        "sequence_parallel_size 4 does not divide the model's 2 attention heads",
    ),
    "experts": (
        {"expert_parallel_size": 2},
        "divides experts of the model type qwen3_moe, and this model is of the type llama: set",
    ),
    "router": (
        {"router_aux_loss": 0.1, "zero_stage": 2},
        "but LlamaForCausalLM has no router loss: set it to 0",
    ),
    "adapters": (
        {"lora": {"target_modules": ["query"]}},
        "target_modules 'query' is not a linear layer of LlamaForCausalLM below",
    ),
}


ARMS = {"base": {"model": "base"}, "ssd": {"model": "ssd"}}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any of the optional packages."""
    for package in ("liger_kernel", "wandb", "flash_attn", "flash_attn_interface", "kernels"):
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize("mistake", EARLY)
def test_untrainable_models_are_refused_without_samples(
    mistake: str, bare: None, tiny_llama: Path
) -> None:
    choices, message = EARLY[mistake]
    with pytest.raises(UserError, match=message):
        check_model(tiny_llama, TrainConfig(**choices), ClusterConfig(train_workers=4))


def test_recurrent_layers_refuse_sequence_parallelism(
    tmp_path: Path,
) -> None:
    from transformers import Lfm2Config

    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    Lfm2Config(**shape, layer_types=["conv", "full_attention"]).save_pretrained(tmp_path)
    with pytest.raises(
        UserError,
        match=(
            r"sequence_parallel_size 2 cuts sequences, and layers of the kind conv would "
            r"restart"
        ),
    ):
        check_model(tmp_path, TrainConfig(sequence_parallel_size=2), ClusterConfig(train_workers=2))


def test_quantized_weights_show_without_samples(tiny_llama: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"bits": 4}})
    )
    with pytest.raises(
        UserError, match=r"holds weights in .*, which cannot be trained: set model.source"
    ):
        check_model(tmp_path, TrainConfig(), ClusterConfig())


def test_flash_attention_may_come_from_prebuilt_kernels(
    bare: None, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("json")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: spec if name in ("kernels", "tensorboard") else None,
    )
    check_model(tiny_llama, TrainConfig(attention="flash_attention_2"), ClusterConfig())


def test_training_problems_are_reported_before_sampling(
    bare: None, tiny_llama: Path, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"source": str(tiny_llama)},
            "evaluate": {"arms": ARMS},
            "train": {"trackers": ["wandb"]},
            "cluster": {"device": "cpu"},
        }
    )
    step = next(step for step in graph.steps(recipe) if step.name == "checkpoint")
    with pytest.raises(UserError, match="trackers has 'wandb', and its package is not installed"):
        step.check(RunContext(recipe, tmp_path, LineProgress()))
    with pytest.raises(UserError, match="trackers has 'wandb', and its package is not installed"):
        Run(recipe, tmp_path, LineProgress()).make()
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_for_states_is_reported_before_sampling(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssd_ray.models import architecture
    from ssd_ray.training.state import disk_space

    model = architecture.read(tiny_llama)
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "model": {"source": str(tiny_llama)},
            "evaluate": {"arms": ARMS},
            "cluster": {"device": "cpu"},
        }
    )
    step = next(step for step in graph.steps(recipe) if step.name == "checkpoint")
    context = RunContext(recipe, tmp_path, LineProgress())
    needed = 3 * 12 * model.parameters
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: needed)
    step.check(context)
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: needed - 1)
    with pytest.raises(UserError, match="3 more resume states of training need"):
        step.check(context)


def _make_checkpoint(recipe: Recipe, run: Path) -> None:
    step = next(step for step in graph.steps(recipe) if isinstance(step, Checkpoint))
    step.make(run / "checkpoint", RunContext(recipe, run, LineProgress()))


def test_a_chat_template_of_the_recipe_reaches_the_trained_model(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssd_ray.training import trainer

    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    jobs: list[Job] = []
    monkeypatch.setattr(trainer, "train", lambda job, _: jobs.append(job) or {})
    for stated in ({}, {"chat_template": str(template)}):
        recipe = {
            "name": "r",
            "model": {"source": str(tiny_llama), **stated},
            "evaluate": {"arms": ARMS},
        }
        _make_checkpoint(Recipe.model_validate(recipe), tmp_path)
    assert [job.serving.chat_template for job in jobs] == [None, "{{ messages[0]['content'] }}"]
    assert {job.serving.decoding and job.serving.decoding.temperature for job in jobs} == {1.0}


def test_end_tokens_and_template_reach_the_trained_model(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssd_ray.training import trainer

    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    jobs: list[Job] = []
    monkeypatch.setattr(trainer, "train", lambda job, _: jobs.append(job) or {})
    model = {"source": str(base), "end_tokens": ["<|im_start|>"]}
    recipe = Recipe.model_validate({"name": "r", "model": model, "evaluate": {"arms": ARMS}})
    _make_checkpoint(recipe, tmp_path)
    assert jobs[0].serving.end_tokens == (1, 2)
    assert jobs[0].serving.chat_template == (base / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"zero_stage": 2, "offload": "parameters"}, "needs zero_stage 3"),
        ({"zero_stage": 0, "offload": "optimizer"}, "needs zero_stage 1, 2 or 3"),
        ({"zero_stage": 0, "dtype": "bfloat16"}, "keeps no float32 master weights"),
        (
            {"attention": "flash_attention_2", "dtype": "float32"},
            "set dtype bfloat16 or attention sdpa",
        ),
        ({"router_aux_loss": 0.001}, "has no gradient where ZeRO-3 recomputes"),
        ({"loss_kernel": "liger", "loss_mean": "sequence"}, "set loss_mean 'token'"),
        (
            {"expert_parallel_size": 2, "sequence_parallel_size": 2},
            "expert_parallel_size 2 needs sequence_parallel_size 1: set that, or expert_parallel_s",
        ),
        ({"expert_parallel_size": 2, "zero_stage": 2}, "expert_parallel_size 2 needs zero_stage 3"),
        ({"expert_parallel_size": 2, "offload": "optimizer"}, "2 needs offload 'none'"),
        ({"expert_parallel_size": 2, "lora": {}}, "2 needs lora null"),
        ({"expert_parallel_size": 2, "compile": True}, "2 needs compile false"),
        ({"warmup_steps": 3, "steps": 2}, "warmup_steps 3 is above steps 2"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(
    choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**choices)


def test_worker_groups_have_only_sizes_that_divide_a_batch() -> None:
    from ray.train import ScalingConfig

    from ssd_ray.training.worker_group import SizedPolicy, sizes

    cluster = ClusterConfig(train_workers=8, min_train_workers=2)
    allowed = sizes(TrainConfig(global_batch_size=32), cluster)
    assert allowed == [2, 4, 8]
    assert sizes(TrainConfig(global_batch_size=24, sequence_parallel_size=2), cluster) == [
        2,
        4,
        6,
        8,
    ]
    assert sizes(TrainConfig(global_batch_size=24, expert_parallel_size=4), cluster) == [4, 8]
    assert sizes(TrainConfig(global_batch_size=32), ClusterConfig(train_workers=8)) == [8]
    policy = SizedPolicy(
        ScalingConfig(num_workers=(2, 8), use_gpu=True, resources_per_worker={"GPU": 1}), allowed
    )
    for gpus, workers in (([8, 8], 8), ([4, 3], 4), ([3], 2), ([1], 0), ([], 0)):
        assert (
            policy._count_possible_workers(
                {str(node): {"GPU": gpu} for node, gpu in enumerate(gpus)}
            )
            == workers
        )


def test_fewer_workers_than_the_least_are_refused() -> None:
    with pytest.raises(ValueError, match="min_train_workers 3 is above train_workers 2"):
        ClusterConfig(train_workers=2, min_train_workers=3)


def test_offloading_workers_reserve_the_cores_of_their_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray gives a worker as many threads as it reserves cores."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 97.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 65.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 2.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    cuda = ClusterConfig(device="cuda", train_workers=16)
    offloaded = TrainConfig(offload="optimizer")
    assert trainer._resources(offloaded, cuda) == {"CPU": 8, "GPU": 1}
    assert trainer._resources(TrainConfig(), cuda) == {"CPU": 1, "GPU": 1}
    nodes[:2] = []
    assert trainer._resources(offloaded, cuda) == {"CPU": 1, "GPU": 1}


def test_a_local_ray_without_enough_gpus_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray would wait forever; a cluster may grow, so there a line says what is awaited."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(room, "read_growth", lambda: Growth(has_autoscaler=True))
    cuda = ClusterConfig(device="cuda", train_workers=8)
    job = Job(
        dataset=tmp_path,
        model=tmp_path,
        out=tmp_path,
        logs=tmp_path,
        train=TrainConfig(),
        cluster=cuda,
        seed=0,
    )
    with pytest.raises(
        UserError, match=r"8 workers of 1 GPU .* machine holds 1: set cluster.train_workers=1"
    ):
        trainer._check_room(job, LineProgress())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    trainer._check_room(job, LineProgress())
    assert "waiting for the cluster to grow, it holds 1 now" in "".join(capsys.readouterr())


def test_gpu_workers_have_expandable_memory_segments() -> None:
    environment = process_environment(TrainConfig(), ClusterConfig(device="cuda"))
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    on_cpu = process_environment(TrainConfig(), ClusterConfig(device="cpu"))
    assert "PYTORCH_ALLOC_CONF" not in on_cpu


def test_cpu_workers_load_the_compiler_only_to_compile() -> None:
    cpu = ClusterConfig(device="cpu")
    name = "TORCHDYNAMO_DISABLE"
    assert process_environment(TrainConfig(), cpu)[name] == "1"
    assert name not in process_environment(TrainConfig(compile=True), cpu)
    assert name not in process_environment(TrainConfig(), ClusterConfig(device="cuda"))
