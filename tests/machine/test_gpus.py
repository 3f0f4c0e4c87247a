"""GPUs are read through NVML or nvidia-smi; a fault is one sentence with its remedy."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from ssd_ray.machine import gpus as gpus_module
from ssd_ray.machine.findings import Finding, gpu_findings
from ssd_ray.machine.gpus import Gpus, read_gpus
from ssd_ray.machine.installed import TorchBuild
from tests.support.machines import (
    H100,
    MIB,
    SMI_GRACE,
    SMI_H100,
    SMI_MISMATCH,
    SMI_NO_DRIVER,
    FakeNvml,
    gpu,
    gpus,
    slice_of,
)

CUDA_13 = TorchBuild(version="2.13.0+cu130", cuda="13.0")


def by_subject(machine: Gpus, torch: TorchBuild = CUDA_13) -> dict[str, Finding]:
    return {finding.subject: finding for finding in gpu_findings(machine, torch, 0.9)}


def faults(machine: Gpus, torch: TorchBuild = CUDA_13) -> list[str]:
    return [line.sentence for line in gpu_findings(machine, torch, 0.9) if line.state == "fault"]


def test_nvml_gives_memory_processes_and_links(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    read = read_gpus({})
    assert (read.driver, read.cuda, read.failure) == ("570.133.20", (12, 8), "")
    assert [(each.name, each.index, each.links) for each in read.installed] == [
        (H100, 0, 18),
        (H100, 1, 18),
    ]
    assert [each.processes for each in read.installed] == [(), (4242,)]
    assert read.installed[0].total == 81559 * MIB
    assert not nvml.is_open


def test_nvml_may_lack_memory_and_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(links=0, memory=False))  # type: ignore[arg-type]
    read = read_gpus({})
    assert [(each.total, each.free, each.links) for each in read.installed] == [(0, 0, 0)] * 2
    assert faults(read, TorchBuild(version="2.13.0", cuda="12.8")) == []


def test_slices_take_the_place_of_a_gpu_in_mig_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(slices=(0, 3)))  # type: ignore[arg-type]
    read = read_gpus({})
    assert [(each.index, each.uuid[:5], each.is_slice, each.total) for each in read.installed] == [
        (0, "GPU-0", False, 81559 * MIB),
        (1, "MIG-0", True, 40448 * MIB),
        (1, "MIG-3", True, 40448 * MIB),
    ]
    chosen = read_gpus({"CUDA_VISIBLE_DEVICES": "MIG-3"})
    assert [each.uuid for each in chosen.visible] == ["MIG-3"]
    lines = by_subject(chosen, TorchBuild(version="2.13.0", cuda="12.8"))
    assert lines["GPUs"].text == f"1 × {H100} MIG 3g.40gb with 39.5 GiB"
    assert lines["free memory"].text == "at least 39.1 of 39.5 GiB on each"
    assert "a slice works alone" in lines["MIG"].text
    # In MIG mode without slices, CUDA sees nothing of the GPU.
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(slices=()))  # type: ignore[arg-type]
    assert [each.index for each in read_gpus({}).installed] == [0]


def test_a_failing_driver_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    for failure, remedy in (
        ("Driver/library version mismatch", "restart the machine"),
        ("Driver Not Loaded", "install the driver"),
    ):
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(failure))  # type: ignore[arg-type]
        (sentence,) = faults(read_gpus({}))
        assert failure in sentence
        assert remedy in sentence


def test_a_missing_driver_is_no_fault_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml("NVML Shared Library Not Found")

    def fail() -> None:
        raise library.NVMLError_LibraryNotFound("NVML Shared Library Not Found")

    monkeypatch.setattr(library, "nvmlInit", fail)
    monkeypatch.setitem(sys.modules, "pynvml", library)  # type: ignore[arg-type]
    assert read_gpus({}).absent
    # A driver that fails may have a GPU, and so may one behind a wrong choice.
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("Driver Not Loaded"))  # type: ignore[arg-type]
    assert not read_gpus({}).absent
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())  # type: ignore[arg-type]
    assert not read_gpus({"CUDA_VISIBLE_DEVICES": "9"}).absent
    for hidden in ("", "-1"):
        assert read_gpus({"CUDA_VISIBLE_DEVICES": hidden}).absent
    assert Gpus(driver="580.95.05").absent


def test_the_double_has_functions_of_the_real_library() -> None:
    real = importlib.import_module("vllm.third_party.pynvml")
    used = re.findall(
        r"nvml\.(\w+)", Path(sys.modules["ssd_ray.machine.gpus"].__file__ or "").read_text()
    )
    # Error classes are made when the module is first used.
    real._extractNVMLErrorsAsClasses()
    assert len(used) > 10
    assert [name for name in used if not hasattr(real, name)] == []
    assert [name for name in used if not hasattr(FakeNvml(), name)] == []


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path for an nvidia-smi, in an environment without nvidia-ml-py."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "nvidia-smi"


def answer(program: Path, output: str, code: int = 0) -> None:
    script = f"#!/bin/sh\ncat <<'END'\n{output}END\nexit {code}\n"
    program.write_text(script, errors="surrogateescape")
    program.chmod(0o755)


def test_nvidia_smi_gives_memory_and_driver(smi: Path) -> None:
    answer(smi, SMI_H100)
    read = read_gpus({})
    assert read.driver == "580.95.05"
    assert [(each.index, each.total, each.free) for each in read.installed] == [
        (0, 81559 * MIB, 81078 * MIB),
        (1, 81559 * MIB, 12034 * MIB),
    ]
    assert {(each.processes, each.links) for each in read.installed} == {(None, None)}
    (sentence,) = faults(read)
    assert sentence == (
        "GPU 1 is in use by another process and has 11.8 of 79.6 GiB free, and an engine takes "
        "90% of a GPU: end the process, choose others with CUDA_VISIBLE_DEVICES=0, or lower "
        "engine.gpu_memory_utilization"
    )


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        (SMI_NO_DRIVER, 9, "couldn't communicate with the NVIDIA driver"),
        (SMI_MISMATCH, 18, "restart the machine"),
        ("No devices were found\n", 6, "No devices were found"),
        ("usage: another program of this name\n", 0, "another program"),
        ("0, NVIDIA H100 80GB HBM3, GPU-8a56a4bc\n", 0, "GPU-8a56a4bc"),
        ("\udcff\udcfe\n", 0, "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_failing_nvidia_smi_is_quoted(smi: Path, output: str, code: int, words: str) -> None:
    answer(smi, output, code)
    (sentence,) = faults(read_gpus({}))
    assert sentence.startswith("no GPU is visible: nvidia-smi answers: ")
    assert words in sentence


def test_a_hanging_nvidia_smi_is_given_up(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus_module._SMI_TIMEOUT_S <= 5
    monkeypatch.setattr(gpus_module, "_SMI_TIMEOUT_S", 0.2)
    smi.write_text("#!/bin/sh\nexec sleep 600\n")
    smi.chmod(0o755)
    assert faults(read_gpus({})) == [
        "no GPU is visible: nvidia-smi gave no answer in 0.2 s, so its driver may hang: try it by "
        "hand, look into dmesg, or restart the machine"
    ]


def test_slices_without_nvml_are_a_note(smi: Path) -> None:
    for output, chosen in (
        (SMI_H100.replace("Disabled", "Enabled", 1), "0"),
        (SMI_H100, "MIG-41b3"),
    ):
        answer(smi, output)
        (finding,) = gpu_findings(read_gpus({"CUDA_VISIBLE_DEVICES": chosen}), CUDA_13, 0.9)
        assert finding.state == "note"
        assert finding.sentence == (
            "MIG slices are in use, and nvidia-smi does not list them: driver, memory and sizes "
            "are not checked: pip install nvidia-ml-py"
        )


def test_a_warning_of_nvidia_smi_is_no_gpu(smi: Path) -> None:
    answer(smi, f"{SMI_H100}WARNING: infoROM is corrupted at gpu 0000:00:1E.0\n")
    assert len(read_gpus({}).installed) == 2


def test_a_driver_without_a_version_is_a_note(smi: Path) -> None:
    answer(smi, SMI_GRACE.replace("580.95.05", "[N/A]"))
    finding = by_subject(read_gpus({}))["driver"]
    assert (finding.state, finding.text) == (
        "note",
        "the version of the driver is unknown ([N/A]), 580 or newer is needed",
    )


def test_memory_shared_with_the_host_is_not_judged(smi: Path) -> None:
    answer(smi, SMI_GRACE)
    read = read_gpus({})
    assert read.installed[0].total == 0
    assert faults(read) == []


def test_a_machine_without_a_driver_has_no_gpus(smi: Path) -> None:
    assert faults(read_gpus({})) == [
        "no GPU is visible: no NVIDIA driver was found (no nvidia-smi on the PATH): install the "
        "driver, or start the container with --gpus all"
    ]


@pytest.mark.parametrize(
    ("chosen", "indices"),
    [
        (None, [0, 1, 2, 3]),
        ("2,0", [2, 0]),
        ("0,9,1", [0]),
        ("-1", []),
        ("", []),
        ("GPU-00000003", [3]),
    ],
)
def test_visible_devices_follow_cudas_rule(chosen: str | None, indices: list[int]) -> None:
    assert [each.index for each in gpus(4, chosen=chosen).visible] == indices


def test_hidden_gpus_are_named() -> None:
    assert faults(gpus(8, chosen="")) == [
        "CUDA_VISIBLE_DEVICES='' leaves none of 8 GPUs: unset it, or name GPUs by the indices of "
        "nvidia-smi"
    ]
    (sentence,) = faults(gpus(8, chosen="MIG-41b3"))
    assert sentence.endswith("leaves none of 8 GPUs: name slices by the UUIDs of nvidia-smi -L")


def test_a_slice_in_use_is_named_by_its_uuid() -> None:
    busy, free = slice_of(0, 0, free=0), slice_of(0, 1)
    machine = gpus(0, installed=(busy, free))
    (sentence,) = faults(machine)
    assert sentence.startswith(f"{busy.uuid} is in use by another process and has 0.0 of 39.5 GiB")
    assert f"CUDA_VISIBLE_DEVICES={free.uuid}," in sentence
    assert machine.largest_group == 1


@pytest.mark.parametrize(
    ("driver", "cuda", "torch", "is_fault"),
    [
        ("570.133.20", (12, 8), "13.0", True),
        ("580.95.05", (13, 0), "13.0", False),
        ("580.95.05", None, "13.0", False),
        ("570.133.20", None, "13.0", True),
        # The package cuda-compat on an older driver.
        ("535.261.03", (13, 0), "13.0", False),
        ("535.261.03", (12, 2), "12.9", False),
        ("470.256.02", (11, 4), "12.9", True),
        # Nothing to compare it with.
        ("570.133.20", (12, 8), None, False),
    ],
)
def test_the_driver_fits_the_build_of_torch(
    driver: str, cuda: tuple[int, int] | None, torch: str | None, is_fault: bool
) -> None:
    build = TorchBuild(version="2.13.0", cuda=torch)
    sentences = faults(gpus(1, driver=driver, cuda=cuda), build)
    assert len(sentences) == is_fault
    for sentence in sentences:
        assert f"driver {driver}" in sentence
        assert "install driver 5" in sentence


def test_gpus_of_different_sizes_get_the_choice_of_equal_ones() -> None:
    mixed = (
        gpu(0, name="NVIDIA GeForce GT 710", total=2048 * MIB, free=2000 * MIB),
        gpu(1),
        gpu(2),
    )
    assert faults(gpus(3, installed=mixed)) == [
        "the GPUs have different sizes (1 × NVIDIA GeForce GT 710 with 2.0 GiB, "
        "2 × NVIDIA H100 80GB HBM3 with 79.6 GiB), and engines and workers need equal ones: set "
        "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1,2"
    ]


def test_a_gpu_in_use_is_named_with_its_process() -> None:
    busy = (gpu(0), gpu(1, free=20 * 1024 * MIB, processes=(4242,)))
    (sentence,) = faults(gpus(2, installed=busy))
    assert sentence.startswith("GPU 1 is in use by process 4242 and has 20.0 of 79.6 GiB free")
    assert faults(gpus(2, installed=busy, chosen="0")) == []
    all_busy = tuple(gpu(index, free=0, processes=(7,)) for index in range(8))
    (sentence,) = faults(gpus(8, installed=all_busy))
    assert "and 5 more" in sentence
    assert "CUDA_VISIBLE_DEVICES" not in sentence


def test_missing_links_are_a_note() -> None:
    assert by_subject(gpus(2))["NVLink"].text == "18 links on each GPU"
    without = tuple(gpu(index, links=0) for index in range(2))
    line = by_subject(gpus(2, installed=without))["NVLink"]
    assert (line.state, line.remedy) == ("note", "add --assume node_gb_s=25 to a plan")
    assert "NVLink" not in by_subject(gpus(1))
