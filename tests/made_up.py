"""What evaluate --json and bench --json write, with made-up numbers."""

from typing import Any

_TEXT = {"perplexity": 12.5, "nats": 2.5, "nats_lost": 0.25, "tokens": 10, "windows": 2, "window": 6}
_TEXT |= {"distance": 0.5, "distance_usual": 0.25}
_TASK = {"items": 9, "shots": 0, "version": "1", "metrics": {"acc": {"value": 0.5, "stderr": None}}}
_MODEL = {"name": "small & <fast>", "parameters": {"linears": 7, "model": 9}, "bytes": 18, "texts": {"a.txt": _TEXT}}
_MORE = {"tasks": {"piqa": _TASK}, "notes": ["a.txt is unlike it."]}
_SPEED = {"name": "small", "weights": 18, "read": 7, "peak": None, "prefill": 0.5, "first": 0.25, "decode": {"8": 0.1}}

EVALUATION: dict[str, Any] = {"version": 1, "models": [_MODEL | _MORE]}
BENCH: dict[str, Any] = {
    "version": 1,
    "settings": {"tokens": 512},
    "limits": {},
    "models": [_SPEED],
    "notes": ["It waits for memory."],
}
