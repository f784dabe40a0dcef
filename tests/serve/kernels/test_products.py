"""The kernels are compiled for GPUs that this machine needs not have."""

import itertools
import json
import os
import subprocess
import sys

import interpreted  # noqa: F401
import pytest

SCRIPT = """
import itertools, json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from slimrank.serve.kernels.blocks import blocks
from slimrank.serve.kernels.products import LOOSE, input_product, output_product

def compiled(kernel, dtype, capability, splits, bits=0, **constants):
    signature, divisible = {}, {}
    matrix = "*" + {0: dtype, 8: "i8"}.get(bits, "u8")
    constants["BITS"] = bits
    for at, name in enumerate(kernel.arg_names):
        kinds = {"table": "*i32", "index": "*i64", "z": "*fp32" if splits > 1 else "*" + dtype}
        kinds |= dict.fromkeys(("x", "y", "scale", "bias"), "*" + dtype) | {"matrix": matrix}
        signature[name] = "constexpr" if name in constants else kinds.get(name.rstrip("012"), "i32")
        if name not in constants and name not in LOOSE:
            divisible[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, divisible)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})

capability, dtype, stored = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
size = {"fp32": 4}.get(dtype, 2)
for tokens, indexed, (bits, group) in itertools.product((1, 8, 32, 64), (False, True), stored):
    cut = blocks(tokens, 1500, 4096, size, 132, splittable=True, bits=bits)
    own = dict(TOKENS=cut.tokens, ROWS=cut.rows, BLOCK=cut.block, INDEXED=indexed, WIDEN=False, GROUP=group, bits=bits)
    one = compiled(input_product, dtype, capability, cut.splits, EXACT=True, PARTS=1 if bits == 0 else 3, **own)
    for exact, parts, splits in ((True, 1, 1), (False, 3, 2 if tokens <= 8 else 1)):
        cut = blocks(tokens, 2500, 1500, size, 132, parts=splits, bits=bits)
        own |= dict(TOKENS=cut.tokens, ROWS=cut.rows, BLOCK=cut.block)
        some = dict(COPIES=cut.copies, PARTS=parts, TABLES=5, BIASES=3, SPLITS=splits, EXACT=exact)
        some["FROM_Z"] = indexed or bits != 4
        two = compiled(output_product, dtype, capability, splits, **some, **own)
        for found in (one, two):
            assert found.metadata.shared <= 99 * 1024, (tokens, found.metadata.shared)
            assert bits == 3 or "cp.async" in found.asm["ptx"], "rows are not fetched ahead, 16 bytes at a time"
            assert ("mma.sync" in found.asm["ptx"]) == (tokens > 1 and size == 2)
print("compiled")
"""

CASES = list(itertools.product((80, 90, 100), ("bf16", "fp16", "fp32"), ([(0, 0)], [(8, 0), (4, 32)])))
CASES.append((80, "bf16", [(8, 128), (4, 0), (4, 48), (3, 0), (2, 64)]))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("capability", "dtype", "stored"), CASES)
def test_compiles_for_gpus_and_fetches_wide_pieces_ahead(capability, dtype, stored, tmp_path):
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(capability), dtype, json.dumps(stored)],
        env=os.environ | own, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "compiled\n", done.stderr
