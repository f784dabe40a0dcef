from architectures import ARCHITECTURES

from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.run.steps import dense_notes


def test_what_stays_dense_is_named_with_its_reason_and_share():
    model = Compressible(Decoder(ARCHITECTURES["mixtral"]()))
    fused = model.decoder.outside_linears()
    whole = sum(fused.values()) + sum(unit.parameters for unit in model.units.values())
    (note,) = dense_notes(model)
    number = sum(fused.values())
    assert note.startswith(
        f"{number:,} parameters ({number / whole:.0%} of the blocks' matrices) stay dense, since they"
    )
    assert "in no linear layer" in note and next(iter(fused)) in note


def test_linears_that_stay_dense_are_told_apart_by_reason(tiny_llama):
    decoder = Decoder(tiny_llama())
    names = list(decoder.linears()[0])[:2]
    decoder.stays |= {names[0]: "are read elsewhere", names[1]: "are shared"}
    notes = dense_notes(Compressible(decoder))
    assert [note.partition("since they ")[2] for note in notes] == [
        f"are read elsewhere: {names[0]}.weight.",
        f"are shared: {names[1]}.weight.",
    ]


def test_a_model_of_linears_alone_has_no_note(tiny_llama):
    assert dense_notes(Compressible(Decoder(tiny_llama()))) == []
