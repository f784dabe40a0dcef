"""Against a running vLLM, in an environment of its own: `make test-vllm`."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from joined import join
from lossless import factors
from transformers import AutoModelForCausalLM

from slimrank.checkpoint import write_checkpoint
from slimrank.forms import KeptColumns, LowRank, Pivoted, compressed_layers
from slimrank.forms.linear import is_linear, weight_of
from slimrank.model.load import load

vllm = pytest.importorskip("vllm")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
cache = tempfile.TemporaryDirectory()
os.environ["VLLM_CACHE_ROOT"] = cache.name  # for all tests, since vLLM reads it once a process
pytestmark = pytest.mark.timeout(1800)

PROMPTS = [[5, 17, 99, 200, 45], [7, 8, 9, 10, 11, 12, 300, 33]]
TOKENS = 64


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo at six tenths of its ranks: dense layers and all forms take turns in fused groups, one block joint."""
    loaded = load("demo")
    model, out = loaded.model, tmp_path_factory.mktemp("checkpoints") / "mixed"
    linears = [(name, module) for name, module in model.named_modules() if is_linear(module) and name != "lm_head"]
    join(model, rank=200, inside="model.layers.1.")
    linears = [(name, dense) for name, dense in linears if model.get_submodule(name) is dense]
    for number, (name, dense) in enumerate(linears):
        left, right = factors(weight_of(dense))
        rank = len(right) * 6 // 10
        left, right = left[:, :rank].contiguous(), right[:rank].contiguous()
        kept = torch.arange(0, right.shape[1], 7)
        rest = torch.tensor([column for column in range(right.shape[1]) if column % 7])
        columns = weight_of(dense).detach()[:, kept]
        forms = [
            lambda left=left, right=right: LowRank.from_low_rank(left, right),
            lambda left=left, right=right: Pivoted.from_low_rank(left, right),
            lambda c=columns, left=left, v=right[:, rest], kept=kept: KeptColumns.from_columns(c, left, v, kept),
        ]
        if number % 4 < 3:
            model.set_submodule(name, forms[number % 4]())
    layers = compressed_layers(model)
    write_checkpoint(model, out, layers=layers, dtype=torch.float32, source=loaded.directory)
    return out


def expected(folder: Path, dtype: torch.dtype) -> list[list[int]]:
    """What transformers generates."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    found = [model.generate(torch.tensor([ids]), **options)[0].tolist() for ids in PROMPTS]
    return [tokens[len(ids) :] for tokens, ids in zip(found, PROMPTS, strict=True)]


def served(folder: Path, dtype: str, eager: bool = True, **options: object) -> list[list[int]]:
    """What vLLM generates."""
    llm = vllm.LLM(model=str(folder), dtype=dtype, enforce_eager=eager, max_model_len=128, **options)
    sampling = vllm.SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    found = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], sampling)
    return [list(one.outputs[0].token_ids) for one in found]


def test_serves_every_form_token_for_token(mixed):
    assert served(mixed, "float32") == expected(mixed, torch.float32)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_serves_compiled(mixed):
    assert served(mixed, "float32", eager=False) == expected(mixed, torch.float32)
    assert list(Path(cache.name).rglob("torch_compile_cache"))


def test_serves_bfloat16(mixed):
    for own, theirs in zip(served(mixed, "bfloat16"), expected(mixed, torch.bfloat16), strict=True):
        assert own[:2] == theirs[:2]  # later ones part where two logits lie within bfloat16's rounding


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="a core for each of two processes")
def test_serves_split_over_two_processes(mixed, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    assert served(mixed, "float32", tensor_parallel_size=2) == expected(mixed, torch.float32)
