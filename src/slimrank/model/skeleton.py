"""A model without its weights: built on the meta device, its tensors found in the checkpoint's files."""

import json
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from slimrank.model.decoder import find_blocks
from slimrank.store.disk_weights import DiskWeights, Slot
from slimrank.store.source import INDEX, SINGLE, Source


def in_parts(
    directory: Path, dtype: torch.dtype, device: torch.device, room: int
) -> tuple[PreTrainedModel, DiskWeights, torch.dtype] | None:
    """The model, its weights on disk (see DiskWeights) and their stored dtype.

    None where a tensor of the model is not in the safetensors files as it is, or the checkpoint is quantized.
    """
    if not ((directory / INDEX).is_file() or (directory / SINGLE).is_file()):
        return None
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        return None
    source = Source(directory)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    slots = find_slots(model, source)
    if slots is None:
        return None
    stored = stored_dtype(directory, source, slots)
    for module in model.modules():
        for leaf, buffer in module._buffers.items():
            module._buffers[leaf] = buffer if buffer is None else buffer.to(device)
    if (directory / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    prefix, blocks = find_blocks(model)
    weights = DiskWeights(
        model, prefix, len(blocks), source=source, slots=slots, stored=stored, dtype=dtype, device=device, room=room
    )
    model.requires_grad_(False)
    return model.eval(), weights, stored


def find_slots(model: PreTrainedModel, source: Source) -> list[Slot] | None:
    """Where each parameter is in the source, None if one is not or a persistent buffer isn't; tied ones are one."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        owner, _, leaf = name.rpartition(".")
        places.setdefault(id(parameter), []).append((model.get_submodule(owner), leaf))
        names.setdefault(id(parameter), []).append(name)
    if parameters.keys() != model.state_dict().keys():
        return None
    base = f"{model.base_model_prefix}."
    slots = []
    for number, known in names.items():
        shape = tuple(parameters[known[0]].shape)
        keys = [key for name in known for key in (name, name.removeprefix(base)) if key in source]
        if not keys or source.shape(keys[0]) != shape:
            return None
        slots.append(Slot(tuple(places[number]), tuple(known), keys[0]))
    return slots


def stored_dtype(directory: Path, source: Source, slots: list[Slot]) -> torch.dtype:
    """What config.json says, else the first float tensor's."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    named = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."), None)
    if isinstance(named, torch.dtype):
        return named
    return next(t.dtype for t in (source.get(slot.key) for slot in slots) if t.is_floating_point())
