"""OpenVINO's intermediate representation, with the same inputs and outputs as the ONNX export."""

from pathlib import Path

from slimrank.checkpoint.companions import save_companions
from slimrank.model.load import Loaded
from slimrank.serve.export.graph import names
from slimrank.serve.export.onnx import cached_runner, need, write_onnx
from slimrank.serve.export.parity import Runner

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""How it is compared: in float32, and without rounding what few-bit layers read, which OpenVINO does by default."""


def export_openvino(loaded: Loaded, folder: Path) -> Runner:
    """Write openvino_model.xml and .bin in float32, configuration and tokenizer, and run it on the CPU."""
    need("openvino", "openvino", "onnx", "onnxscript")
    import openvino

    draft = folder / "draft"
    draft.mkdir()
    write_onnx(loaded, draft / "model.onnx")
    converted = openvino.convert_model(draft / "model.onnx")
    openvino.save_model(converted, folder / "openvino_model.xml", compress_to_fp16=False)
    del converted
    for file in draft.iterdir():
        file.unlink()
    draft.rmdir()
    loaded.model.config.save_pretrained(folder)
    save_companions(loaded.directory, loaded.tokenizer, folder)
    compiled = openvino.compile_model(folder / "openvino_model.xml", "CPU", EXACT)
    outputs = names((len(compiled.inputs) - 3) // 2)[1]

    def run(feed: dict[str, object]) -> list[object]:
        found = compiled(feed)
        return [found[name] for name in outputs]

    return cached_runner(loaded, run)
