"""The tensors of a checkpoint directory: which files hold them, mapped and read when they are used."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slimrank.errors import SlimrankError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LFS = b"version https://git-lfs"
_OTHER = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "model.ckpt")


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers reads a checkpoint's tensors from: model.safetensors, or else its index's shards.

    Raises:
        SlimrankError: where there is none, or the index can't be read or names a file that isn't there.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if not (directory / INDEX).is_file():
        raise SlimrankError(_without(directory))
    try:
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        names, _ = set(index["weight_map"].values()), index["metadata"].keys()  # both, as transformers does
        files = sorted({directory / Path(name).name for name in names})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SlimrankError(f"The file {directory / INDEX} is no index of shards: fetch it again.") from error
    for file in files:
        if not file.is_file():
            raise SlimrankError(f"The weight file {file}, which {INDEX} names, is missing: fetch it.")
    return files


def has_weights(directory: Path) -> bool:
    """Whether there are safetensors files of a model in it."""
    return (directory / SINGLE).is_file() or (directory / INDEX).is_file()


def _without(directory: Path) -> str:
    if (directory / "adapter_config.json").is_file():
        return f"{directory} holds a PEFT adapter: merge it into its base model (merge_and_unload) and save that."
    other = next((name for name in _OTHER if (directory / name).is_file()), None)
    if other:
        return (
            f"{directory / other} is a pickle or another library's format, which slimrank does not read: "
            "load the model with transformers and save it again, as safetensors."
        )
    return f"{directory} holds no weights, neither {SINGLE} nor {INDEX}: fetch the model again."


class Source:
    """Names, shapes and tensors of `directory`, sharded or in one file.

    Raises:
        SlimrankError: naming a file that is missing, truncated or no safetensors file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[Path, Any] = {}
        self._places = {key: path for path in weight_files(directory) for key in self._open(path).keys()}  # noqa: SIM118 (no mapping)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Any:
        return iter(self._places)

    def shape(self, key: str) -> tuple[int, ...]:
        """The tensor's shape, read from the file's header."""
        return tuple(self._open(self._places[key]).get_slice(key).get_shape())

    def dtypes(self) -> set[torch.dtype]:
        """The floating dtypes of its tensors, read from the files' headers."""
        named = {self._open(path).get_slice(key).get_dtype() for key, path in self._places.items()}
        return {FLOATS[name] for name in named & FLOATS.keys()}

    def get(self, key: str) -> Tensor:
        """The tensor on the CPU in the file's dtype, memory-mapped."""
        tensor: Tensor = self._open(self._places[key]).get_tensor(key)
        return tensor

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = opened(path)
        return self._files[path]


def opened(path: Path) -> Any:
    """The safetensors file, mapped.

    Raises:
        SlimrankError: if it is a pointer of Git LFS, truncated or another kind of file.
    """
    with path.open("rb") as file:
        begins = file.read(len(_LFS))
    if begins == _LFS:
        raise SlimrankError(f"The weight file {path} is a Git LFS pointer without the weights: run `git lfs pull`.")
    try:
        return safe_open(path, "pt").__enter__()
    except (SafetensorError, OSError, ValueError) as error:
        raise SlimrankError(f"The weight file {path} is truncated or damaged ({error}): fetch it again.") from error
