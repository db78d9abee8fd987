"""A stream whose family changes on its way: its questions, their order, and what is reported of each part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evidence_runs import answer, item, write_run
from evidence_scripts import Scripted, answers, carry_out, plan_of

from elm_agent.bench.evidence import methods, report
from elm_agent.bench.evidence.families import staged_items
from elm_agent.bench.evidence.figures import task_figures
from elm_agent.bench.evidence.folder import read_run
from elm_agent.bench.evidence.orders import shuffled
from elm_agent.bench.evidence.report_series import stream_changes
from elm_agent.bench.evidence.summary import counted
from elm_agent.bench.evidence.task_sets import load_task_set
from elm_agent.errors import InputError

WORDS = "arithmetic:products>ages"


def test_first_the_one_family_then_as_many_of_the_other() -> None:
    made = load_task_set(WORDS, limit=9)
    assert [one.part for one in made.items] == ["1: products"] * 5 + ["2: ages"] * 4
    assert all(one.family == one.part[3:] for one in made.items)
    assert [one.split for one in made.items[:4]] == ["train", "test", "train", "test"]
    assert (made.name, made.kind, made.duplicates) == (WORDS, "math", ())
    held = load_task_set("arithmetic:products+sums>ages>sums@test", limit=12)
    assert [one.part for one in held.items[::4]] == ["1: products+sums", "2: ages", "3: sums"]
    assert {one.split for one in held.items} == {"test"}
    assert load_task_set(WORDS).items == load_task_set(WORDS).items
    assert len(load_task_set(WORDS).items) == 60
    assert {one.part for one in load_task_set("arithmetic:products", limit=4).items} == {""}


def test_a_family_that_comes_again_asks_what_it_has_not_asked() -> None:
    items = staged_items([["products"], ["sums"], ["products", "sums"]], count=60, split=None, seed=0)
    assert len({one.id for one in items}) == len({one.digest for one in items}) == 60
    alone = staged_items([["products"]], count=20, split=None, seed=0)
    assert [one.id for one in items[:20]] == [one.id for one in alone]


def test_streams_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="unknown family ''"):
        load_task_set("arithmetic:products>", limit=4)
    with pytest.raises(InputError, match="unknown family 'cakes'"):
        load_task_set("arithmetic:products>cakes", limit=4)
    with pytest.raises(InputError, match=r"sequences have \d+ questions; got a limit of 1000: ask for fewer"):
        load_task_set("arithmetic:sequences>sums", limit=2000)


def test_each_part_is_shuffled_by_the_seed_and_none_is_mixed() -> None:
    items = load_task_set(WORDS, limit=20).items
    orders = [shuffled(items, seed) for seed in range(4)]
    for order in orders:
        assert [one.part for one in order] == ["1: products"] * 10 + ["2: ages"] * 10
        assert set(order[:10]) == set(items[:10])
    assert len({tuple(one.id for one in order) for order in orders}) == 4
    assert shuffled(items, 3) == orders[3]
    whole = load_task_set("arithmetic:products+ages", limit=20).items
    assert {one.family for one in shuffled(whole, 0)[:10]} == {"products", "ages"}


def test_a_run_learns_across_the_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods.METHODS, "scripted", Scripted)
    monkeypatch.setattr(Scripted, "log", [])
    lines = carry_out(plan_of("scripted", tasks=(WORDS,), limit=6, seeds=(0, 1)), tmp_path / "run")
    for seed in (0, 1):
        mine = [line for line in answers(lines) if line.seed == seed]
        assert [line.part for line in mine] == ["1: products"] * 3 + ["2: ages"] * 3
        assert [line.detail["known"] for line in mine] == list(range(6))
    stored = read_run(tmp_path / "run")
    assert stored.lines == lines
    assert {one.part for one in stored.items.values()} == {"1: products", "2: ages"}
    again = carry_out(plan_of("scripted", tasks=(WORDS,), limit=6, seeds=(0, 1)), tmp_path / "run")
    assert again == lines


def parted(tmp_path: Path) -> Path:
    """Zero-shot is right on 3 of 4 and then 2 of 4; elm on all and then on 1, and once it fails."""
    plain = [True, True, True, False, True, True, False, False]
    agent = [True, True, True, True, True, False, None, False]
    part = ["1: easy"] * 4 + ["2: hard"] * 4
    lines = [answer("zero_shot", n, right, part=part[n]) for n, right in enumerate(plain)]
    lines += [answer("elm", n, right, part=part[n]) for n, right in enumerate(agent)]
    return write_run(tmp_path / "run", lines, items=[item(n) for n in range(8)])


def test_figures_and_counts_are_of_each_part(tmp_path: Path) -> None:
    run = read_run(parted(tmp_path))
    [task] = task_figures(run.lines, run.items)
    zero, elm = task.methods
    assert [(one.part, one.accuracy.part, one.accuracy.whole, one.versus) for one in zero.parts] == [
        ("1: easy", 3, 4, None),
        ("2: hard", 2, 4, None),
    ]
    first, second = elm.parts
    assert (first.accuracy.part, first.failures, second.accuracy.part, second.failures) == (4, 0, 1, 1)
    assert first.versus is not None
    assert second.versus is not None
    assert (first.versus.fixed, first.versus.broken, second.versus.fixed, second.versus.broken) == (1, 0, 0, 1)
    assert first.versus.difference.estimate == pytest.approx(0.25)
    assert second.versus.difference.estimate == pytest.approx(-1 / 3)
    found = {(one.method, one.part): (one.asked, one.failed, one.right) for one in counted(run.lines)}
    assert found["elm", ""] == (8, 1, 5)
    assert found["elm", "2: hard"] == (4, 1, 1)
    assert [one.part for one in counted(run.lines)] == ["", "", "1: easy", "2: hard", "1: easy", "2: hard"]
    assert counted(run.lines)[-1].row[0] == "sums, 2: hard"


def test_the_counts_at_the_end_compare_with_the_method_zero_shot_where_it_was_judged(tmp_path: Path) -> None:
    """A method without a plain candidate of its own is compared too; a pair that was not judged is none."""
    right = [answer("zero_shot", n, n < 3) for n in range(4)]
    bare = [answer("icl", n, n > 0) for n in range(5)]
    run = read_run(write_run(tmp_path, [*right, *bare]))
    (icl,) = [one for one in counted(run.lines) if one.method == "icl"]
    assert (icl.pairs, icl.zero_shot, icl.fixed, icl.broken, icl.right) == (4, 3, 1, 1, 4)
    assert icl.row[6:10] == ("80.0%", "75.0%", 1, 1)


def test_a_report_has_a_table_of_the_parts(tmp_path: Path) -> None:
    made = report.build(read_run(parted(tmp_path)))
    report.write(tmp_path / "out", made)
    page = (tmp_path / "out/report.md").read_text()
    assert "Dotted: where the stream changes." in page
    assert stream_changes(made.run.lines) == (4,)
    table = page.split("Parts of the stream")[1]
    assert "| elm | 2: hard | 33.3 % (1/3) |" in table
    assert "| 1: easy | 75.0 % (3/4) | – | reference |" in table
    assert "Parts of the stream" in (tmp_path / "out/report.html").read_text()
    told = json.loads((tmp_path / "out/report.json").read_text())
    assert [one["part"] for one in told["tasks"][0]["methods"][1]["parts"]] == ["1: easy", "2: hard"]
    plain = write_run(tmp_path / "plain", [answer("zero_shot", 0, True), answer("elm", 0, True)])
    report.write(tmp_path / "other", report.build(read_run(plain)))
    told = (tmp_path / "other/report.md").read_text()
    assert "Parts of the stream" not in told
    assert "Dotted" not in told
