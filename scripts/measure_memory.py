"""Measure the memory that a build takes: anonymous memory of its whole process tree, at its peak.

    scripts/measure_memory.py [--gigabytes 2] [--folder DIR]

Writes Hugging Face checkpoints in bfloat16, float32, MXFP4 and FP8, and a ``model.pt`` with lists
of experts, of the given size in float32; builds each with and without parity. Prints, as Markdown,
the peak as a multiple of the exported weights. Memory that a file backs is not counted: the kernel
takes it back without swapping.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIGABYTE = 1 << 30
_INTERVAL = 0.02
# Largest multiple of the model, and what is added, in gigabytes.
BOUNDS = {True: (1.6, 1.0), False: (0.3, 1.0)}

MODULE = """
import torch
from torch import nn


class Experts(nn.Module):
    def __init__(self, hidden, inner, count):
        super().__init__()
        self.gate = nn.Linear(hidden, count, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, inner), nn.GELU(), nn.Linear(inner, hidden))
            for _ in range(count)
        )

    def forward(self, x):
        weights, ids = self.gate(x).softmax(-1).topk(2)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, slot = torch.where(ids == number)
            y.index_add_(0, row, expert(x[row]) * weights[row, slot, None])
        return x + y
"""


@dataclass(frozen=True)
class Case:
    """One build.

    Attributes:
        name: What is built.
        source: On the command line.
        options: Further ones.
        verify: Whether it is compared with eager.
    """

    name: str
    source: str
    options: tuple[str, ...]
    verify: bool


def write_checkpoint(folder: Path, gigabytes: float, dtype: str) -> Path:
    """A Mixtral of four layers whose experts hold nearly all weights."""
    import torch
    import transformers

    hidden, layers, experts = 1024, 4, 8
    inner = int(gigabytes * GIGABYTE / 4 / layers / experts / 3 / hidden) // 64 * 64
    config = transformers.MixtralConfig(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_local_experts=experts,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=kind)
    model.save_pretrained(folder / dtype, max_shard_size="500MB")
    return folder / dtype


def write_mxfp4(folder: Path, gigabytes: float) -> Path:
    """A GPT-OSS of four layers with random experts, in the format of its checkpoints."""
    import torch
    import transformers

    layers, experts, hidden = 4, 8, 1024
    inner = int(gigabytes * GIGABYTE / 4 / layers / experts / 3 / hidden) // 64 * 64
    config = transformers.GptOssConfig(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_local_experts=experts,
        max_position_embeddings=512,
    )

    def quantize(name: str, shape: torch.Size) -> dict[str, torch.Tensor]:
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return {}
        count, columns, rows = shape  # the checkpoint holds the transposed
        return {
            f"{name}_blocks": torch.randint(256, (count, rows, columns // 32, 16)).byte(),
            f"{name}_scales": torch.full((count, rows, columns // 32), 120).byte(),
        }

    return write_quantized(folder / "mxfp4", config, {"quant_method": "mxfp4"}, quantize)


def write_fp8(folder: Path, gigabytes: float) -> Path:
    """A DeepSeek-V3 of four layers with random experts, in blocks of 128 x 128."""
    import torch
    import transformers

    layers, experts, hidden = 4, 16, 1024
    inner = int(gigabytes * GIGABYTE / 4 / layers / experts / 3 / hidden) // 128 * 128
    config = transformers.DeepseekV3Config(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=1024,
        moe_intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        n_routed_experts=experts,
        first_k_dense_replace=0,
        kv_lora_rank=128,
        q_lora_rank=256,
        max_position_embeddings=512,
    )

    def quantize(name: str, shape: torch.Size) -> dict[str, torch.Tensor]:
        if ".mlp." not in name or not name.endswith("_proj.weight"):
            return {}
        blocks = [-(-size // 128) for size in shape]
        return {
            name: torch.randint(0x60, shape, dtype=torch.uint8).view(torch.float8_e4m3fn),
            f"{name}_scale_inv": torch.full(blocks, 1e-3),
        }

    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return write_quantized(folder / "fp8", config, settings, quantize)


def write_quantized(
    folder: Path,
    config: Any,  # noqa: ANN401 - a configuration of transformers
    settings: Mapping[str, Any],
    quantize: Callable[[str, Any], dict[str, Any]],
) -> Path:
    """A random checkpoint, those of its tensors quantized for which ``quantize`` returns some."""
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in checkpoint_shapes(model):
        own = 0.02 * torch.randn(tensor.shape).bfloat16()
        tensors |= quantize(name, tensor.shape) or {name: own}
    folder.mkdir(exist_ok=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    quantized = json.dumps({**written, "quantization_config": settings})
    (folder / "config.json").write_text(quantized)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def checkpoint_shapes(model: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - of transformers
    """Tensors by the names that checkpoints have for them: DeepSeek's experts lie apart."""
    apart = type(model).__name__.startswith("Deepseek")
    for name, tensor in model.state_dict().items():
        if not apart or ".experts." not in name:
            yield name, tensor
            continue
        base, last = name.rsplit(".", 1)
        for number in range(len(tensor)):
            if last == "gate_up_proj":
                gate, up = tensor[number].chunk(2)
                yield f"{base}.{number}.gate_proj.weight", gate
                yield f"{base}.{number}.up_proj.weight", up
            else:
                yield f"{base}.{number}.down_proj.weight", tensor[number]


def write_module(folder: Path, gigabytes: float) -> Path:
    """Four layers with lists of experts, pickled whole."""
    import torch

    (folder / "expert_lists.py").write_text(textwrap.dedent(MODULE))
    sys.path.insert(0, str(folder))
    from expert_lists import Experts  # type: ignore[import-not-found]  # written above

    hidden, layers, experts = 1024, 4, 8
    inner = int(gigabytes * GIGABYTE / 4 / layers / experts / 2 / hidden) // 64 * 64
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Experts(hidden, inner, experts) for _ in range(layers)))
    torch.save(model, folder / "model.pt")
    return folder / "model.pt"


def process_tree(root: int) -> Iterator[int]:
    """Ids of a process and all that it started."""
    yield root
    for task in Path(f"/proc/{root}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from process_tree(int(child))


def anonymous_bytes(root: int) -> int:
    """Anonymous memory of a process tree; processes that have just ended count nothing."""
    total = 0
    try:
        for process in process_tree(root):
            status = Path(f"/proc/{process}/status").read_text()
            line = next((li for li in status.splitlines() if li.startswith("RssAnon")), "0 0")
            total += int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return total


def run(case: Case, folder: Path) -> tuple[int, int, float]:
    """Build one case: peak of the anonymous memory and exported bytes, and seconds."""
    output = folder / "bundle"
    command = [sys.executable, "-m", "moe_export", "build", case.source, "-o", str(output)]
    command += [*case.options, "--overwrite", *([] if case.verify else ["--no-verify"])]
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(_INTERVAL)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    exported = (output / "model.onnx.data").stat().st_size
    return peak, exported, time.perf_counter() - start


def main() -> int:
    """Measure every case; 1 if one is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="where the models are written; kept")
    parser.add_argument("--only", help="cases whose name holds this text")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="moe-export-memory-"))
    folder.mkdir(parents=True, exist_ok=True)
    sources = {
        "safetensors, bfloat16": (
            str(write_checkpoint(folder, arguments.gigabytes, "bfloat16")),
            (),
        ),
        "safetensors, float32": (str(write_checkpoint(folder, arguments.gigabytes, "float32")), ()),
        "GPT-OSS, MXFP4": (str(write_mxfp4(folder, arguments.gigabytes)), ()),
        "DeepSeek-V3, FP8 in blocks": (str(write_fp8(folder, arguments.gigabytes)), ()),
        "model.pt, lists of experts": (
            str(write_module(folder, arguments.gigabytes)),
            ("--trust", "--input", "input=8,1024"),
        ),
    }
    print("| source | parity | exported | peak | bound | time |")
    print("|---|---|---|---|---|---|")
    above = 0
    for name, (source, options) in sources.items():
        for verify in (True, False):
            if arguments.only and arguments.only not in name:
                continue
            peak, exported, seconds = run(Case(name, str(source), options, verify), folder)
            times, more = BOUNDS[verify]
            bound = times * exported + more * GIGABYTE
            above += peak > bound
            print(
                f"| {name} | {'yes' if verify else 'no'} | {exported / GIGABYTE:.2f} GB "
                f"| {peak / GIGABYTE:.2f} GB = {peak / exported:.2f}x "
                f"| {times}x + {more:.0f} GB | {seconds:.0f} s |",
                flush=True,
            )
    return 1 if above else 0


if __name__ == "__main__":
    raise SystemExit(main())
