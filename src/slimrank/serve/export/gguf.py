"""GGUF, which llama.cpp runs: whole numbers bit for bit as Q8_0 and Q4_0, floats as they are stored.

A block of Q8_0 or Q4_0 is 32 numbers with a scale in float16. So every layer must be one matrix, dense or of the form
`dense`, with groups that are a multiple of 32; 3 and 2 bits become 4.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.forms import Embedding, Experts, Form
from slimrank.forms.embedding import TiedHead
from slimrank.forms.quantized import QuantizedLinear
from slimrank.model.load import Loaded, load
from slimrank.serve.export.gguf_header import add_model, add_tokenizer, architecture_of
from slimrank.serve.export.onnx import need
from slimrank.serve.export.parity import Runner, torch_runner

FILE = "model.gguf"
BLOCK = 32


def export_gguf(loaded: Loaded, folder: Path) -> Runner:
    """Write model.gguf with the tokenizer in it, and read it back through transformers."""
    need("gguf", "gguf")
    write_gguf(loaded, folder / FILE)
    return torch_runner(load(str(folder / FILE)).model)


def write_gguf(loaded: Loaded, file: Path) -> None:
    """Write the model to a GGUF file, its float matrices in the dtype that they are stored in, vectors in float32.

    Raises:
        SlimrankError: for an architecture, a layer or a tokenizer that can't be written.
    """
    from gguf import GGUFWriter, get_tensor_name_map

    architecture = architecture_of(loaded)
    writer = GGUFWriter(file, architecture.name)
    add_model(writer, loaded.model.config)
    add_tokenizer(writer, loaded)
    names = get_tensor_name_map(architecture.kind, loaded.model.config.num_hidden_layers)
    for name, value in tensors_of(loaded):
        short = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if short is None:
            raise SlimrankError(f"llama.cpp has no place for the tensor {name}: export with --to dense or onnx.")
        rows = architecture.rows(short, loaded.model.config)
        add_tensor(writer, short, value, rows, loaded.dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(loaded: Loaded) -> list[tuple[str, Tensor | QuantizedLinear]]:
    """Every tensor of the model by its name in the dense one, whole numbers as the module that holds them."""
    found: list[tuple[str, Tensor | QuantizedLinear]] = []
    inside: set[str] = set()
    for name, module in loaded.model.named_modules():
        if isinstance(module, Embedding):
            found.append((f"{name}.weight", module.table))
        elif isinstance(module, Form):
            whole = module.present_factors().get("whole")
            if not isinstance(whole, QuantizedLinear) or module.ranked:
                raise SlimrankError(
                    f"The layer {name} is {module.form}, and llama.cpp multiplies by one matrix: give a checkpoint of "
                    "dense layers, or multiply it out with --to dense."
                )
            bias = module.dense_bias()
            found += [(f"{name}.weight", whole), *([] if bias is None else [(f"{name}.bias", bias)])]
        elif isinstance(module, Experts):
            raise SlimrankError(f"llama.cpp takes no compressed experts, and {name} are: export with --to dense.")
        if isinstance(module, Form | Embedding):
            inside.add(f"{name}.")
    tied = {"lm_head.weight"} if isinstance(loaded.model.get_output_embeddings(), TiedHead) else set()
    seen = {id(value) for _, value in found}
    for name, value in loaded.model.named_parameters():
        if not name.startswith(tuple(inside)) and name not in tied and id(value) not in seen:
            seen.add(id(value))
            found.append((name, value.detach()))
    return found


def add_tensor(
    writer: Any, name: str, value: Tensor | QuantizedLinear, rows: Tensor | None, dtype: torch.dtype
) -> None:
    """Add a tensor whose rows are taken in another order, None for their own; dtype: of float matrices."""
    import gguf
    from gguf import GGMLQuantizationType as Kind

    if isinstance(value, QuantizedLinear):
        blocks, kind = blocks_of(name, value, rows)
        writer.add_tensor(name, blocks, raw_dtype=kind)
        return
    value = value if rows is None else value[rows.to(value.device)]
    floats = value.float().numpy()
    kind = {torch.bfloat16: Kind.BF16, torch.float16: Kind.F16}.get(dtype, Kind.F32) if value.ndim > 1 else Kind.F32
    writer.add_tensor(name, gguf.quantize(floats, kind), raw_dtype=kind)


@torch.no_grad()
def blocks_of(name: str, layer: QuantizedLinear, rows: Tensor | None) -> tuple[np.ndarray, Any]:
    """The layer's rows as bytes (rows, blocks x bytes of a block), and the kind of the blocks.

    Raises:
        SlimrankError: where groups are no multiple of 32, or a scale is not the same number in float16.
    """
    from gguf import GGMLQuantizationType as Kind

    width = layer.group or layer.in_features
    if layer.in_features % BLOCK or width % BLOCK:
        raise SlimrankError(
            f"{name} has {layer.in_features} inputs, of which {width} share a scale, and GGUF's blocks are of {BLOCK}: "
            f"take groups of a multiple of {BLOCK}."
        )
    numbers, scale = layer.numbers(), layer.scale.float()
    if rows is not None:
        numbers, scale = numbers[rows], scale[rows]
    count = layer.in_features // BLOCK
    half = scale.repeat_interleave(width // BLOCK, dim=1)[:, :count].half()
    if not torch.equal(half[:, :: width // BLOCK][:, : scale.shape[1]].float(), scale):
        raise SlimrankError(f"{name} has a scale that float16, which GGUF's blocks have, can't hold: export --to onnx.")
    blocks = numbers.unflatten(1, (count, BLOCK))
    if layer.bits < 8:
        shifted = (blocks + 8).to(torch.uint8)
        blocks = (shifted[..., :16] | (shifted[..., 16:] << 4)).view(torch.int8)
    joined = torch.cat([half[..., None].contiguous().view(torch.int8), blocks], dim=-1)
    return joined.flatten(1).view(torch.uint8).numpy(), Kind.Q8_0 if layer.bits == 8 else Kind.Q4_0
