"""Against a running vLLM, in an environment of its own: `make test-vllm`."""

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from joined import join
from lossless import factors
from transformers import AutoModelForCausalLM

from slimrank.checkpoint import write_checkpoint
from slimrank.errors import SlimrankError
from slimrank.forms import FORMS, Dense, Form, KeptColumns, LowRank, Pivoted, compressed_layers, link
from slimrank.forms.embedding import untie
from slimrank.forms.linear import is_linear, weight_of
from slimrank.forms.quantized import QuantizedLinear
from slimrank.model.load import load
from slimrank.numerics.packing import pack
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
    """The demo at six tenths of its ranks: dense layers and all forms take turns in fused groups, one block joint.

    Its head is no longer tied to the embedding, and has 8 bits.
    """
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
    model.config.tie_word_embeddings = False
    untie(model, "lm_head.weight")
    model.lm_head = quantized(Dense.from_dense(weight_of(model.lm_head).detach().roll(1, 0)), 8)
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
@pytest.mark.parametrize("checkpoint", ["mixed", "few"])
def test_serves_split_over_two_processes(checkpoint, request, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    folder = request.getfixturevalue(checkpoint)
    assert served(folder, "float32", tensor_parallel_size=2) == expected(folder, torch.float32)


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
    importlib.import_module("slimrank.serve.vllm.kernels").tell.cache_clear()
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


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What vLLM's parameters and kernels ask for, of one device."""
    for name, value in (("rank", 0), ("world_size", 1)):
        monkeypatch.setattr(
            f"vllm.model_executor.parameter.get_tensor_model_parallel_{name}", lambda value=value: value
        )
    config = importlib.import_module("vllm.config")
    with config.set_current_vllm_config(config.VllmConfig()):
        yield


@pytest.mark.parametrize(
    ("bits", "group", "dtype", "reason"),
    [
        (4, 32, torch.bfloat16, None),
        (4, 128, torch.float16, None),
        (4, 16, torch.bfloat16, None),
        (4, None, torch.bfloat16, None),
        (8, None, torch.bfloat16, ""),
        (8, 64, torch.bfloat16, "Quant type"),
        (4, 40, torch.bfloat16, "vLLM's kernels take groups in multiples of 32 inputs"),
        (4, 32, torch.float32, "vLLM's kernels take 4 or 8 bits, and activations of bfloat16 or float16"),
        (3, 64, torch.bfloat16, "vLLM's kernels take 4 or 8 bits"),
    ],
)
@torch.no_grad()
def test_products_of_few_bits_by_vllms_kernels_or_our_own(bits, group, dtype, reason, alone, recwarn):
    from slimrank.serve.vllm.kernels import Wna16, few_bits, tell

    tell.cache_clear()
    for rows, columns in ((64, 256), (100, 300)):
        low, groups = -(2 ** (bits - 1)), -(-columns // group) if group else 1
        numbers = torch.randint(low, -low, (rows, columns)).to(torch.int8)
        scale = (torch.rand(rows, groups) + 0.1).to(dtype)
        matrix = QuantizedLinear.of(pack(numbers, bits), scale, columns, bits, group)
        product = few_bits(matrix)
        assert isinstance(product, Wna16) == (reason is None)
        for tokens in (1, 17):
            x = torch.randn(tokens, columns).to(dtype)
            expected = x.double() @ matrix.matrix(torch.float64).T
            assert (product(x) - expected).norm() <= 6e-3 * expected.norm()
    said = [str(one.message) for one in recwarn if "floats at every call" in str(one.message)]
    assert len(said) == bool(reason)
    assert all(reason in one and f"matrices of {bits} bits" in one for one in said)


def test_a_model_that_has_no_place_for_the_embedding_is_refused(monkeypatch):
    plugin = importlib.import_module("slimrank.serve.vllm")
    monkeypatch.setattr(plugin, "get_pp_group", lambda: SimpleNamespace(is_first_rank=True))
    config = plugin.SlimrankConfig({"model.embed_tokens": {"form": "embedding", "bits": 8}})
    linear = plugin.LinearBase.__new__(plugin.LinearBase)
    assert isinstance(config.get_quant_method(linear, "vision.proj"), plugin.UnquantizedLinearMethod)
    with pytest.raises(SlimrankError, match=r"no place for whole numbers in its embedding, and model\.embed_tokens is"):
        config.get_quant_method(linear, "model.layers.0.mlp.gate_up_proj")


def test_an_embedding_of_other_tensors_than_its_entrys_is_refused():
    ends = importlib.import_module("slimrank.serve.vllm.ends")
    method = ends.EmbeddingMethod("model.embed_tokens", {"form": "embedding", "bits": 4})
    tensors = {"weight": torch.zeros(10, 16, dtype=torch.uint8), "scale": torch.ones(10, 1)}
    assert method.table(10, 32, tensors).matrix().tolist() == [[-8.0] * 32] * 10
    for wrong in ({}, tensors | {"scale": torch.ones(10, 2)}):
        with pytest.raises(SlimrankError, match=r"tensors of the embedding model.embed_tokens are not those of its"):
            method.table(10, 32, wrong)
    with pytest.raises(SlimrankError, match="NaN or Inf"):
        method.table(10, 32, tensors | {"scale": torch.full((10, 1), torch.nan)})
