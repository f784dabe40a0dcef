from types import SimpleNamespace

from slimrank.runtime import memory as limits


def test_a_control_groups_page_cache_is_free(tmp_path, monkeypatch):
    real = limits.Path
    monkeypatch.setattr(limits, "Path", lambda place: tmp_path if place == "/sys/fs/cgroup" else real(place))
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{900 * 2**20}\n")
    (tmp_path / "memory.stat").write_text(f"anon {100 * 2**20}\ninactive_file {500 * 2**20}\nactive_file 7\n")
    assert limits.free_memory() == 2**30 - 400 * 2**20
