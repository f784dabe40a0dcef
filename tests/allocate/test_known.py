import pytest
from tiny_spectra import problem, spectra

from slimrank.allocate.asvd import PerplexityScan
from slimrank.allocate.duo import MeasuredModules
from slimrank.allocate.known import Known, Measured, key_of
from slimrank.allocate.measure import Damage
from slimrank.store.pieces import DiskPieces
from slimrank.store.run import Run


def test_what_was_measured_is_found_again_and_a_torn_line_is_cut_off(tmp_path, tiny_llama):
    units = list(spectra(tiny_llama()).curves)
    pieces, what = DiskPieces(tmp_path), ["base", 3]
    first = Known(pieces, what)
    first.add(key_of("kl", {units[0]: 2, units[1]: None}), Measured(1 / 3, 5))
    (file,) = tmp_path.glob("measured.*.jsonl")
    with file.open("a") as opened:
        opened.write('["[\\"kl\\", [[[\\"a')
    again = Known(pieces, what)
    assert again[key_of("kl", {units[1]: None, units[0]: 2})] == Measured(1 / 3, 5)
    assert again.has("kl") and not again.has("nats") and again.passes == 5
    again.add(key_of("nats", {}), Measured(2.5, 1))
    assert [Known(pieces, what)[key_of("nats", {})].value, Known(pieces, what).passes] == [2.5, 6]
    assert Known(pieces, ["base", 4]).passes == 0


@pytest.mark.parametrize("allocator", [MeasuredModules(windows=2), PerplexityScan(windows=2)])
def test_a_search_that_died_measures_only_the_rest(allocator, tmp_path, tiny_llama, monkeypatch):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    made = spectra(tiny_llama(**sizes))
    whole = allocator.allocate(problem(made))
    run, measured, left = Run(DiskPieces(tmp_path)), [], [20]
    compared = Damage._compared

    def dying(self, compare, layers):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        measured.append(compared(self, compare, layers))
        return measured[-1]

    monkeypatch.setattr(Damage, "_compared", dying)
    parts = problem(made, run=run)
    with pytest.raises(KeyboardInterrupt):
        allocator.allocate(parts)
    left[0] = 10**6
    resumed = allocator.allocate(parts)
    assert resumed.ranks == whole.ranks and resumed.notes == whole.notes
    seen = len(measured)
    again = allocator.allocate(parts)
    assert len(measured) == seen and again == resumed
