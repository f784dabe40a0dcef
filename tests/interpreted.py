"""Where Triton's kernels run: on a GPU, or by Triton's interpreter on the CPU, which `make test-triton` asks for."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton isn't installed: make test-triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":  # which is read when triton is imported
    pytest.skip("Without a GPU, TRITON_INTERPRET=1 runs the kernels: make test-triton", allow_module_level=True)
