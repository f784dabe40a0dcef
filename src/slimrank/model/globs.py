"""Which linears to compress, by globs on their names."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from slimrank.errors import UsageError


class Globs:
    """A filter for compress: the linears whose full names match one of `only`, by default all, and none of `skip`.

    A glob is as for fnmatch, upper and lower case differing: `*.mlp.*` is every linear of the blocks' `mlp`.
    """

    def __init__(self, only: Sequence[str] = (), skip: Sequence[str] = ()) -> None:
        self._globs = {"--only": list(only), "--skip": list(skip)}
        self._matched: set[tuple[str, str]] = set()

    def __call__(self, name: str, module: nn.Module) -> bool:
        """Whether to compress the linear of this name."""
        only, skip = (self._matches(option, name) for option in self._globs)
        return (only or not self._globs["--only"]) and not skip

    def _matches(self, option: str, name: str) -> bool:
        found = {(option, glob) for glob in self._globs[option] if fnmatchcase(name, glob)}
        self._matched |= found
        return bool(found)

    def require_matches(self) -> None:
        """Raise a UsageError that names a glob which matched no linear so far."""
        for option, globs in self._globs.items():
            for glob in globs:
                if (option, glob) not in self._matched:
                    raise UsageError(
                        f"{option} {glob!r} matches the name of no linear in the decoder blocks: names are such as "
                        "model.layers.0.mlp.up_proj, of which '*.mlp.*' matches a part."
                    )
