"""A model ready to run one step after another, the way a server would: prefill, then decode a batch."""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

Step = Callable[[], Any]


def prompt(model: PreTrainedModel, tokens: int, batch: int = 1) -> Tensor:
    """Random token ids (batch, tokens), the same for every model of one vocabulary."""
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    return ids.expand(batch, tokens).to(model.device)


def prefill(model: PreTrainedModel, ids: Tensor) -> DynamicCache:
    """Read the prompt and fill a cache; logits of the last position only, as generation needs."""
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, logits_to_keep=1)
    return cache


def first_token(model: PreTrainedModel, ids: Tensor) -> None:
    """What a user waits for before the first token appears, generation's own preparations included."""
    options: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    model.generate(ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]


def decoder(model: PreTrainedModel, tokens: int, batch: int, steps: int, compiled: bool = False) -> Step:
    """A function that decodes one token of each of `batch` sequences that start after `tokens` tokens.

    On CUDA it replays a CUDA graph over a static cache with room for `steps` calls; `compiled`, on a CPU, is
    torch.compile's single graph over such a cache.
    """
    if model.device.type == "cuda":
        return _graph(model, tokens, batch, steps)
    cache: Cache = prefill(model, prompt(model, tokens))
    cache.batch_repeat_interleave(batch)
    token = prompt(model, 1, batch)
    if compiled:
        return _compiled(model, token, _static(model, cache, tokens + steps), tokens)
    return lambda: model(token, past_key_values=cache, logits_to_keep=1).logits


def _compiled(model: PreTrainedModel, token: Tensor, cache: StaticCache, tokens: int) -> Step:
    """Decode `token` (batch, 1) again and again, by one graph, after the `tokens` that the cache holds."""
    options: Any = {"size_asserts": False}  # every step's tensors have the sizes of the first one's
    run = torch.compile(model.forward, fullgraph=True, dynamic=False, options=options)
    positions = count(tokens)

    def step() -> Any:
        position = torch.tensor([next(positions)])  # transformers 4 would read it from the cache, which is no graph
        warm = position.item() > tokens  # then nothing but the position changes, so that few guards need asking
        with torch.compiler.set_stance(skip_guard_eval_unsafe=warm):
            return run(token, past_key_values=cache, cache_position=position, logits_to_keep=1).logits

    return step


def _static(model: PreTrainedModel, cache: Cache, room: int) -> StaticCache:
    """The keys and values of `cache` in a static one with room for so many tokens."""
    found = StaticCache(config=model.config, max_cache_len=room)
    layers: Any = zip(cache.layers, found.layers, strict=True)
    for layer, own in layers:
        own.update(layer.keys, layer.values, {"cache_position": torch.arange(layer.keys.shape[2])})
    return found


def _graph(model: PreTrainedModel, tokens: int, batch: int, steps: int) -> Step:
    warmup = 3
    room = tokens + steps + warmup + 1
    cache = StaticCache(config=model.config, max_cache_len=room)
    model(prompt(model, tokens, batch), past_key_values=cache, logits_to_keep=1)
    token = prompt(model, 1, batch).contiguous()

    def step() -> None:
        model(token, past_key_values=cache, logits_to_keep=1)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return partial(_replay, graph, (token, cache))


def _replay(graph: torch.cuda.CUDAGraph, used: object) -> None:
    """Replay the graph; `used` holds on to the tensors that it reads and writes."""
    graph.replay()
