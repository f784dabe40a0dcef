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
from slimrank.forms import FORMS, Dense, Form, KeptColumns, LowRank, Pivoted, compressed_layers, link
from slimrank.forms.linear import is_linear, weight_of
from slimrank.model.load import load
from slimrank.run.quantize import quantized, round_ends
from slimrank.serve.fold import outer_linears

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


def served(folder: Path, dtype: str, eager: bool = True, held: list[int] | None = None, **options: object):
    """What vLLM generates; held: takes the bytes of its weights."""
    llm = vllm.LLM(model=str(folder), dtype=dtype, enforce_eager=eager, max_model_len=128, **options)
    sampling = vllm.SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    if held is not None:
        held += llm.apply_model(weight_bytes)
    found = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], sampling)
    return [list(one.outputs[0].token_ids) for one in found]


def weight_bytes(model: torch.nn.Module) -> int:
    """The bytes of all tensors of the model that vLLM holds, but for the angles of its positions."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    held = {tensor.untyped_storage().data_ptr(): tensor for name, tensor in tensors if "cos_sin_cache" not in name}
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


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


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in few bits: forms and widths take turns in fused groups, one block joint, and 8 bits in the ends."""
    loaded = load("demo")
    model, out = loaded.model, tmp_path_factory.mktemp("checkpoints") / "few"
    join(model, rank=200, inside="model.layers.1.")
    kinds = [("dense", 4, 32), ("low_rank", 8, None), ("dense", 8, None), ("pivoted", 8, None), ("low_rank", 4, 64),
             ("dense", 4, 128), ("dense", 3, 64), ("columns", 4, 32), None]  # fmt: skip
    for number, (name, dense) in enumerate(list(outer_linears(model))):
        if isinstance(dense, Form):
            model.set_submodule(name, quantized(dense, 8))
        elif name != "lm_head" and (kind := kinds[number % len(kinds)]):
            form, bits, group = kind
            left, right = factors(weight_of(dense))
            rank = len(right) * 6 // 10
            low = left[:, :rank].contiguous(), right[:rank].contiguous()
            made = Dense.from_dense(weight_of(dense)) if form == "dense" else FORMS[form].from_low_rank(*low)
            model.set_submodule(name, quantized(made, bits, group))
    link(model)
    round_ends(model, 8)
    write_checkpoint(model, out, layers=compressed_layers(model), dtype=torch.bfloat16, source=loaded.directory)
    return out


def test_serves_few_bits_token_for_token(few):
    with pytest.warns(UserWarning, match="makes matrices of 3 bits with a scale every 64 inputs floats at every call"):
        found = served(few, "float32")
    assert found == expected(few, torch.float32)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_few_bits_stay_packed_in_vllms_kernels(few):
    held: list[int] = []
    found = served(few, "bfloat16", eager=False, held=held)
    assert held[0] < 1.1 * (few / "model.safetensors").stat().st_size
    for own, theirs in zip(found, expected(few, torch.bfloat16), strict=True):
        assert own[:2] == theirs[:2]
