"""How much memory is left: the host's, or less where a control group has a limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elm_agent.models import memory

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def write_group(folder: Path, names: tuple[str, str, str], limit: object, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")


def spare(tmp_path: Path, lines: str) -> list[int]:
    (tmp_path / "cgroup").write_text(lines)
    return list(memory._spare_of_groups(tmp_path / "cgroup", tmp_path))


def test_version_2_has_one_hierarchy_and_every_group_above_limits(tmp_path: Path) -> None:
    write_group(tmp_path / "pod", V2, 1000, 700, 50)
    write_group(tmp_path / "pod" / "job", V2, "max", 700, 50)
    assert spare(tmp_path, "0::/pod/job\n") == [350]
    write_group(tmp_path / "pod" / "job", V2, 800, 700, 50)
    assert spare(tmp_path, "0::/pod/job\n") == [350, 150]


def test_version_1_has_one_hierarchy_for_memory(tmp_path: Path) -> None:
    write_group(tmp_path / "memory" / "box", V1, 1000, 1200, 50)
    write_group(tmp_path / "cpu" / "box", V1, 7, 0, 0)
    assert spare(tmp_path, "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n") == [0]


def test_a_container_that_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    write_group(tmp_path, V2, 1000, 100, 0)
    assert spare(tmp_path, "0::/kubepods/outside\n") == [900]


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert list(memory._spare_of_groups(tmp_path / "none", tmp_path)) == []
    (tmp_path / "memory.max").write_text("1000\n")  # and nothing else
    assert spare(tmp_path, "0::/\n") == []


@pytest.mark.parametrize(("groups", "expected"), [([], 500), ([300, 400], 300), ([900], 500)])
def test_the_smaller_one_counts(groups: list[int], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_spare_of_host", lambda: iter([500]))
    monkeypatch.setattr(memory, "_spare_of_groups", lambda *_: iter(groups))
    assert memory.spare_bytes(torch.device("cpu")) == expected


def test_who_says_nothing_limits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_spare_of_host", lambda: iter(()))
    monkeypatch.setattr(memory, "_spare_of_groups", lambda *_: iter(()))
    assert memory.spare_bytes(torch.device("cpu")) is None
