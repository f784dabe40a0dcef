"""Takes every causal language model of transformers, made tiny, through slimrank, and says what became of it.

Each in a process of its own: the walk block by block against the model, every linear replaced by an exact product,
`svd-llm` at keep 0.6, the checkpoint against the model in memory, and a few generated tokens. Rows go to a JSON file
as they are done; the page docs/architectures.md is made from it.

    python benchmarks/architecture_sweep.py --out benchmarks/results/architectures.json --page docs/architectures.md
"""

import argparse
import json
import multiprocessing
import re
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import provenance
import torch
import transformers
from rows import one_sentence, require_commit
from tiny_configs import VOCABULARY, tiny
from tiny_tokenizer import make_tokenizer, words
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from slimrank import compress, load
from slimrank.calibrate.follow import follow
from slimrank.errors import SlimrankError
from slimrank.forms import Form, LowRank, compressed_layers
from slimrank.forms.experts import Stack, fold, unfold
from slimrank.forms.linear import bias_of, weight_of
from slimrank.model.decoder import Decoder
from slimrank.model.modules import set_module
from slimrank.runtime.machine import processor

SECONDS = 120
Row = dict[str, Any]
VERDICTS = ("right", "partly", "refused", "not built", "wrong", "traceback")


class Wrong(Exception):
    """Numbers that should be equal and are not."""


def main() -> None:
    """Examine the classes that are asked for and write their rows and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a config's class, such as LlamaConfig; may be repeated")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file, gone on with where it has rows")
    parser.add_argument("--page", type=Path, help="the Markdown page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = json.loads(options.out.read_text())["rows"] if options.out.is_file() else []
    chosen = {kind.__name__: kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING}
    if options.only:
        chosen = {name: chosen[name] for name in options.only}
        rows = [row for row in rows if row["config"] not in chosen]
    commit = provenance.commit()
    with one_sentence():
        require_commit(options.out, rows, commit)
    for name, kind in chosen.items():
        if name not in {row["config"] for row in rows}:
            rows.append(apart(kind) | {"commit": commit})
            print(json.dumps(rows[-1]), flush=True)
            write(options.out, rows)
    print(dict(Counter(row["verdict"] for row in rows)))
    if options.page:
        options.page.write_text(page(rows, transformers.__version__), encoding="utf-8")


def write(path: Path, rows: list[Row]) -> None:
    """The JSON file."""
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    versions["machine"] = processor(torch.device("cpu"))
    lines = ",\n".join(json.dumps(row) for row in sorted(rows, key=lambda row: row["config"]))
    path.write_text(f'{{"versions": {json.dumps(versions)}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def apart(kind: type[PretrainedConfig], seconds: float = SECONDS) -> Row:
    """examine, in a process of its own that is given so many seconds."""
    context, begun = multiprocessing.get_context("fork"), time.monotonic()
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=lambda: theirs.send(examine(kind)))
    child.start()
    theirs.close()
    try:
        row = mine.recv() if mine.poll(seconds) else failed("traceback", f"not done after {seconds} s")
    except EOFError:
        row = failed("traceback", "the process died")
    child.kill()
    child.join()
    return {"config": kind.__name__, "seconds": round(time.monotonic() - begun, 1), **row}


def examine(kind: type[PretrainedConfig]) -> Row:
    """What became of the model of this config: its verdict, and the reason or the share that was compressed."""
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(tiny(kind)).float().eval()
        jiggle(model)
        ids = torch.randint(3, VOCABULARY, (2, 32), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            finite = bool(model(input_ids=ids, use_cache=False).logits.isfinite().all())
    except Exception as error:
        return failed("not built", f"{type(error).__name__}: {one_line(error)}")
    row = {"model": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
    if not finite:
        return row | failed("not built", "its random logits are not finite")
    try:
        with tempfile.TemporaryDirectory() as place:
            return row | taken_through(model, ids, Path(place))
    except SlimrankError as error:
        return row | failed("refused", re.sub(r"/\S*/", "", str(error)))
    except Wrong as error:
        return row | failed("wrong", str(error))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return row | failed("traceback", f"{type(error).__name__}: {one_line(error)} ({place})")


@torch.no_grad()
def jiggle(model: PreTrainedModel) -> None:
    """Random norms, biases and heads, so that what is left out is seen."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.add_(0.05 * torch.randn_like(parameter))


def taken_through(model: PreTrainedModel, ids: torch.Tensor, place: Path) -> Row:
    """The row of a model that was built."""
    dense, text = place / "dense", place / "text.txt"
    try:
        model.save_pretrained(dense)
        make_tokenizer().save_pretrained(dense)
        AutoModelForCausalLM.from_pretrained(dense)
    except Exception as error:
        return failed("not built", f"transformers cannot save and load it: {one_line(error)}")
    text.write_text(words(3000), encoding="utf-8")
    common: dict[str, Any] = {"keep": 0.6, "calibration": str(text), "samples": 8, "window": 32}
    found = load(str(dense))
    before, generates = logits(found.model, ids), generated(found.model, ids) is None
    unfold(found.model)
    equal(logits(found.model, ids), before, 1e-4, "experts as linears")
    decoder = Decoder(found.model)
    follow(decoder, ids)
    for block in decoder.linears():
        for name, linear in block.items():
            set_module(found.model, name, exact(linear))
    equal(logits(found.model, ids), before, 1e-4, "full rank")
    fold(found.model)
    equal(logits(found.model, ids), before, 1e-4, "full rank, experts stacked")
    result = compress(str(dense), "svd-llm", **common)
    compressed = logits(result.model, ids)
    if torch.equal(compressed, before):
        raise Wrong("nothing changed at keep 0.6")
    result.save(place / "memory")
    again = AutoModelForCausalLM.from_pretrained(place / "memory")
    same_tensors(again, result.model)
    equal(logits(again, ids), compressed, 1e-5, "the checkpoint")  # products may round by how a tensor lies in memory
    compress(str(dense), "svd-llm", **common, out=place / "disk")
    equal(logits(AutoModelForCausalLM.from_pretrained(place / "disk"), ids), compressed, 1e-4, "the run from disk")
    why = generated(again, ids) if generates else None
    if why:
        raise Wrong(f"the dense model generates and the compressed one does not: {why}")
    return verdict(again, result.plan.notes)


def verdict(model: PreTrainedModel, notes: Iterable[str]) -> Row:
    """right, or partly where something of the blocks stays dense, with the share that was compressed."""
    blocks, layers = Decoder(model).blocks, compressed_layers(model)
    forms = [module for module in blocks.modules() if isinstance(module, Form | Stack)]
    inside = {id(p) for form in forms for p in form.parameters()}
    was = sum(form.in_features * form.out_features * len(getattr(form, "entries", "1")) for form in forms)
    rest = sum(p.numel() for p in blocks.parameters() if p.ndim > 1 and id(p) not in inside)
    share = was / (was + rest)
    verdict = "right" if share == 1 else "partly"
    return {"verdict": verdict, "layers": len(layers), "share": round(share, 3), "reason": " ".join(notes)}


def generated(model: PreTrainedModel, ids: torch.Tensor) -> str | None:
    """Why the model can't generate; some of transformers' can't when they are tiny."""
    try:
        model.generate(ids[:, :8], max_new_tokens=3, do_sample=False)
    except Exception as error:
        return one_line(error)
    return None


def failed(verdict: str, reason: str) -> Row:
    """A row of a model that did not come through."""
    return {"verdict": verdict, "reason": reason}


def one_line(error: Exception) -> str:
    """The error's text without line breaks."""
    return " ".join(str(error).split())[:300]


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """(windows, tokens, vocabulary)."""
    torch.manual_seed(0)
    return model.eval()(input_ids=ids, use_cache=False).logits


def same_tensors(found: PreTrainedModel, expected: PreTrainedModel) -> None:
    """Raise Wrong where one of two models has a tensor that the other has not, to the bit."""
    ours, theirs = expected.state_dict(), found.state_dict()
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name]):
            raise Wrong(f"the checkpoint's {name} is not what is in memory")


def exact(linear: nn.Module) -> LowRank:
    """The linear as a product of full rank."""
    weight = weight_of(linear).detach()
    rows, columns = weight.shape
    if rows <= columns:
        return LowRank.from_low_rank(torch.eye(rows), weight.contiguous(), bias_of(linear))
    return LowRank.from_low_rank(weight.contiguous(), torch.eye(columns), bias_of(linear))


def equal(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    """Raise Wrong where they differ by more than this share of the expected logits' spread."""
    apart = (found - expected).abs().max().item()
    spread = expected.std().item()
    if not apart <= tolerance * spread:
        raise Wrong(f"{what} differs by {apart / spread:.2g} of the logits' spread")


def page(rows: list[Row], version: str) -> str:
    """The Markdown page; version: of the transformers that the rows were made with."""
    counts = Counter(row["verdict"] for row in rows)
    lines = [
        "# Architectures",
        "",
        "Every causal language model class of transformers "
        f"{version}, made tiny and random, taken through slimrank by `benchmarks/architecture_sweep.py`:",
        "the walk block by block equals the model, full rank is the identity to 1e-4 of the logits' spread, and",
        "`svd-llm` at keep 0.6 is saved, loaded to the bit and generates.",
        "*Partly*: that share of the blocks' matrices is compressed; the rest stays dense, which the reason names.",
        "*Not built*: transformers cannot make it so small from its config alone.",
        "",
        ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]) + ".",
        "",
        "| model | verdict | |",
        "|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.get("model", row["config"])):
        reason = str(row.get("reason", "")).replace("|", "\\|").replace("<", "&lt;")
        share = f" ({row['share']:.0%})" if row["verdict"] == "partly" else ""
        lines.append(f"| {row.get('model', row['config'])} | {row['verdict']}{share} | {reason} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
