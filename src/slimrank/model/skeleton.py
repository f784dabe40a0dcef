"""A model without its weights: built on the meta device, its tensors found in the checkpoint's files."""

import json
import re
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from slimrank.checkpoint.read import read_layers
from slimrank.checkpoint.register import describe, put_layers
from slimrank.forms import has_bits
from slimrank.forms.experts import unfold
from slimrank.model.blocks import find_blocks
from slimrank.model.stored_names import Names, expert_slots
from slimrank.store.disk_weights import DiskWeights
from slimrank.store.slot import Slot
from slimrank.store.source import Source
from slimrank.store.weights import part_of, put

NO_NAMES = Names()


def in_parts(
    directory: Path, dtype: torch.dtype, device: torch.device, room: int
) -> tuple[PreTrainedModel, DiskWeights, torch.dtype] | None:
    """The model, its weights on disk (see DiskWeights) and their stored dtype.

    None where a tensor of the model is not in the safetensors files as it is, or is shared by several blocks. A
    checkpoint of slimrank's is built with its compressed layers.
    """
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    source = Source(directory)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    layers = read_layers(directory)
    if any(has_bits(entry) for entry in layers.values()):
        return None
    if layers:
        put_layers(model, layers)
    model.tie_weights()
    unfold(model)
    names = Names.of(model, source)
    slots = find_slots(model, source, names)
    if slots is None:
        return None
    stored = stored_dtype(directory, source)
    read_buffers(model, source, names)
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            empty = buffer is not None and not buffer.numel()  # a guard, on the meta device
            module._buffers[leaf] = torch.empty_like(buffer, device=device) if empty else on(buffer, device)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    prefix, blocks = find_blocks(model)
    if any(len({part_of(prefix, name) for name in slot.names}) > 1 for slot in slots):
        return None
    weights = DiskWeights(model, prefix, len(blocks), source=source, slots=slots, dtype=dtype, device=device, room=room)
    model.requires_grad_(False)
    describe(model)
    return model.eval(), weights, stored


def on(buffer: Tensor | None, device: torch.device) -> Tensor | None:
    """The buffer on the device, where there is one."""
    return None if buffer is None else buffer.to(device)


def find_slots(model: PreTrainedModel, source: Source, names: Names = NO_NAMES) -> list[Slot] | None:
    """Where each parameter is in the source; tied ones are one, unless the source holds them with different values.

    names: see Names. None where a parameter or persistent buffer is not in the source as it is, or the source holds a
    tensor that is nowhere in the model.
    """
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    known_as: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        places.setdefault(id(parameter), []).append((model.get_submodule(owner), leaf))
        known_as.setdefault(id(parameter), []).append(name)
    buffers = {key: key_of(model, source, names, key) for key in full_buffers(model)}
    if None in buffers.values():
        return None
    base = f"{model.base_model_prefix}."
    experts = expert_slots(model, source, names)
    if experts is None:
        return None
    slots, used = list(experts.values()), {*buffers.values(), *(key for slot in experts.values() for key in slot.keys)}
    for number, known in known_as.items():
        if known[0] in experts:
            continue
        keys = [
            next((key for key in (name, name.removeprefix(base), names.whole.get(name)) if key in source), None)
            for name in known
        ]
        there = [key for key in keys if key is not None]
        if not there or any(source.shape(key) != tuple(parameters[known[0]].shape) for key in there):
            return None
        used.update(there)
        for key in apart(source, there):
            mine = [
                i for i, own in enumerate(keys) if own == key or (key == there[0] and not differs(source, own, key))
            ]
            slots.append(Slot(tuple(places[number][i] for i in mine), tuple(known[i] for i in mine), (key,)))
    return slots if all(key in used or 0 in source.shape(key) or ignored(model, key) for key in source) else None


def full_buffers(model: PreTrainedModel) -> list[str]:
    """The names of the persistent buffers that hold any number; compressed layers have empty ones."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [name for name, tensor in model.state_dict().items() if name not in parameters and tensor.numel()]


def key_of(model: PreTrainedModel, source: Source, names: Names, name: str) -> str | None:
    """The key of a model's tensor in the source, where it has the same shape there."""
    base = f"{model.base_model_prefix}."
    known = (name, name.removeprefix(base), names.whole.get(name, name))
    keys = [key for key in known if key in source]
    shape = tuple(model.get_buffer(name).shape)
    return keys[0] if keys and source.shape(keys[0]) == shape else None


def read_buffers(model: PreTrainedModel, source: Source, names: Names) -> None:
    """Put the source's tensors in the places of the persistent buffers, which stay in memory."""
    for name in full_buffers(model):
        key, buffer = key_of(model, source, names, name), model.get_buffer(name)
        assert key is not None, "find_slots looked"
        put(model, name, source.get(key).to(buffer.dtype).clone())


def apart(source: Source, keys: list[str]) -> list[str]:
    """The first of these keys, and those whose tensors differ from it."""
    return [key for key in dict.fromkeys(keys) if key == keys[0] or differs(source, key, keys[0])]


def differs(source: Source, key: str | None, other: str) -> bool:
    """Whether the source holds two tensors under these keys that are not the same."""
    return key not in (None, other) and not torch.equal(source.get(str(key)), source.get(other))


def ignored(model: PreTrainedModel, key: str) -> bool:
    """Whether transformers knows that checkpoints hold a tensor that the model does not need."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq", r"(^|\.)position_ids$"]
    return any(re.search(pattern, key) for pattern in patterns)


def stored_dtype(directory: Path, source: Source) -> torch.dtype:
    """What config.json says, else the first float tensor's."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    said = str(config.get("dtype") or config.get("torch_dtype"))
    named = getattr(torch, said.removeprefix("torch."), None)
    if isinstance(named, torch.dtype):
        return named
    return next((t.dtype for t in map(source.get, source) if t.is_floating_point()), torch.float32)
