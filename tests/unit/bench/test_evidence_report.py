"""A run folder becomes a report: read again without a model, whole in itself, and honest about what is missing."""

from __future__ import annotations

import json
import lzma
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evidence_runs import TASK, answer, item, learn, whole_matrix, whole_stream, write_run
from typer.testing import CliRunner, Result

from elm_agent.bench.evidence.contract import GenerationLine
from elm_agent.bench.evidence.folder import read_run
from elm_agent.bench.evidence.report import FILES, build, write
from elm_agent.cli.app import app
from elm_agent.errors import InputError

VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}


class Page(HTMLParser):
    """What a page holds; every tag that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def written(folder: Path) -> dict[str, str]:
    """The report of a run folder, by the names of its files."""
    paths = write(folder / "report", build(read_run(folder)))
    assert tuple(path.name for path in paths) == FILES
    assert sorted(path.name for path in paths) == sorted(path.name for path in (folder / "report").iterdir())
    return {path.name: path.read_text("utf-8") for path in paths}


def bench_report(*words: object) -> Result:
    return CliRunner().invoke(app, ["bench", "report", *map(str, words)], prog_name="elm-agent")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return written(write_run(tmp_path_factory.mktemp("stream"), whole_stream()))


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return written(write_run(tmp_path_factory.mktemp("matrix"), whole_matrix(), protocol="offline"))


def test_markdown_has_the_figures_and_how_they_were_made(stream: dict[str, str]) -> None:
    text = stream["report.md"]
    for words in ("elm-agent bench online --limit 20", "2026-11-21T12:00:00", "tiny"):
        assert words in text
    for title in ("Results", "Seeds one by one", "Beside the baselines", "Routing", "Cost", "Map of the bank"):
        assert f"### {title}" in text
    [row] = re.findall(r"^\| elm\\_input \| ([^|]*%[^|]*) \| ([^|]*) \| ([^|]*) \|", text, re.MULTILINE)[:1]
    assert re.fullmatch(r"\d+\.\d % \(\d+/59\)", row[0])  # one of 60 failed
    assert row[1] == "59, 3 seeds"
    assert re.fullmatch(r"\+\d+\.\d \\\[\+\d+\.\d, \+\d+\.\d\\\]", row[2])
    assert "| answer | elm\\_input | 1 | sums | q3 |  | the model stopped |" in text


def test_tables_of_markdown_are_whole(stream: dict[str, str], matrix: dict[str, str]) -> None:
    for text in (stream["report.md"], matrix["report.md"]):
        tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
        assert len(tables) > 5
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_the_page_needs_nothing_else(stream: dict[str, str], matrix: dict[str, str]) -> None:
    for text in (stream["report.html"], matrix["report.html"]):
        assert "http" not in text
        assert "@import" not in text
        page = Page(text)
        assert not page.all("script")
        assert not page.all("link")
        assert not page.all("img")
        for _, attrs in page.tags:
            for name in ("src", "href", "xlink:href"):
                assert (attrs.get(name) or "#").startswith(("#", "data:image/png;base64,"))
        for used in re.findall(r"url\((.*?)\)", text):
            assert used.startswith("#")


def test_the_page_is_for_phones_dark_rooms_and_blind_readers(stream: dict[str, str], matrix: dict[str, str]) -> None:
    for text in (stream["report.html"], matrix["report.html"]):
        page = Page(text)
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
        assert "prefers-color-scheme: dark" in text
        assert "#010203" not in text  # the ink became the page's own colour
        assert "currentColor" in text
        pictures = page.all("svg")
        assert len(pictures) >= 3
        for svg in pictures:
            assert svg["role"] == "img"
            assert len(svg["aria-label"] or "") > 20
            assert "width" not in svg
        assert len(page.all("figcaption")) == len(pictures) == len(page.all("figure"))
        assert page.all("html") == [{"lang": "en"}]


def test_names_in_the_page_are_unique_and_links_lead_somewhere(
    stream: dict[str, str], matrix: dict[str, str]
) -> None:
    for text in (stream["report.html"], matrix["report.html"]):
        page = Page(text)
        names = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
        assert len(names) == len(set(names))
        links = [href[1:] for _, attrs in page.tags if (href := attrs.get("href") or "").startswith("#")]
        assert set(links) | set(re.findall(r"url\(#(.*?)\)", text)) <= set(names)
        assert links


def test_every_plot_is_there(stream: dict[str, str], matrix: dict[str, str]) -> None:
    alts = " ".join(svg["aria-label"] or "" for svg in Page(stream["report.html"]).all("svg"))
    for words in ("so far", "gain", "fixed and broken", "retrievals by rank", "memories;", "rollouts that agree"):
        assert words in alts
    alts = " ".join(svg["aria-label"] or "" for svg in Page(matrix["report.html"]).all("svg"))
    for words in ("Share of memories by gain", "16 memories;", "rollouts that agree"):
        assert words in alts
    assert alts.count(" 8 memories;") == 2  # a matrix for each seed


def test_a_report_is_the_same_when_it_is_made_again(tmp_path: Path, stream: dict[str, str]) -> None:
    assert written(write_run(tmp_path / "again", whole_stream())) == stream


def test_json_has_every_figure(stream: dict[str, str], matrix: dict[str, str]) -> None:
    found = json.loads(stream["report.json"])
    [task] = found["tasks"]
    assert [one["method"] for one in task["methods"]] == ["zero_shot", "icl", "elm_input"]
    assert set(task["methods"][2]["versus"]["difference"]) >= {"estimate", "low", "high", "level", "note"}
    assert found["run"]["environment"]["command"] == "elm-agent bench online --limit 20"
    assert len(found["failures"]) == 1
    [offline] = json.loads(matrix["report.json"])["offline"]
    assert len(offline["memories"]) == 16
    assert set(offline["seeds"][0]["matrix"]["q0"].values()) <= {"fixed", "broken", "both_right", "both_wrong"}


def test_forms_of_the_agent_stand_against_each_other(tmp_path: Path) -> None:
    right = {"zero_shot": 2, "elm_input": 6, "elm_kv": 3, "elm_kv:clear": 3}
    lines = [answer(name, n, n < count) for name, count in right.items() for n in range(6)]
    made = written(write_run(tmp_path / "run", [line for line in lines if line.method != "elm_kv" or line.position]))
    table = made["report.md"].partition("### The agent's forms against each other")[2].partition("###")[0]
    assert "Of 3 comparisons" in table
    assert "p is too small" in table
    assert "| form | less 1 | less 2 |" in table
    assert "| 1: elm\\_input |  |  |" in table
    assert re.search(r"^\| 2: elm\\_kv \| -60\.0 \\\[.*\\\]; p 0\.2500; 5 pairs \|  \|$", table, re.MULTILINE)
    assert re.search(r"^\| 3: elm\\_kv:clear \| -50\.0 .*; 6 pairs \| \+0\.0; p –; 5 pairs \|$", table, re.MULTILINE)
    assert "elm\\_kv:clear beside elm\\_kv: all 5 questions gave the same difference" in table
    assert "against each other" in made["report.html"]
    [task] = json.loads(made["report.json"])["tasks"]
    assert [len(one["among"]) for one in task["methods"]] == [0, 0, 1, 2]


def test_seeds_that_are_no_whole_seeds_are_marked_and_not_averaged(tmp_path: Path) -> None:
    shared = {"detail": {"shared_with_seed": 0}}
    lines = [answer("zero_shot", n, n < 2, seed=s, **shared if s else {}) for s in range(3) for n in range(4)]
    lines += [answer("icl", n, n < 3 - s, seed=s) for s, asked in enumerate((4, 4, 1)) for n in range(asked)]
    lines += [answer("elm_kv", n, None if n == 3 else n == 0) for n in range(4)]
    text = written(write_run(tmp_path / "run", lines))["report.md"]
    assert "| 50.0 % | 50.0 % | 50.0 % | 50.0, the same for every seed |" in text
    assert "zero\\_shot: nothing is drawn, so each answer stands here once for every seed" in text
    [row] = re.findall(r"^\| icl \| 75\.0 % \(.*$", text, re.MULTILINE)[:1]
    assert "| 100.0 % (+0.0); not finished: 1 of 4 |" in row
    assert row.endswith("| 62.5 ± 17.7 |")
    assert re.search(r"^\| elm\\_kv \| 33\.3 % \(.*\); 1 failed \| – \| – \| 33\.3, 1 seed \|$", text, re.MULTILINE)
    assert "icl 62.5 % after 4 questions, 2 seeds" in text
    assert "icl, seed 2: 1 of 4 questions, left out." in text


def test_each_memory_is_on_one_map_and_counted_alike(tmp_path: Path, matrix: dict[str, str]) -> None:
    begun = learn("elm", 8, key=(1.0, 2.0, 3.0), curve=({"vote_share": 1.0},))  # of which nothing was asked yet
    lines = [
        *whole_matrix(),
        begun,
        learn("ttrl", 0, memory_id=None, curve=({"vote_share": 0.5},)),
        answer("ttrl", 0, True),
    ]
    text = written(write_run(tmp_path / "run", lines, protocol="offline"))["report.md"]
    for made in (text, matrix["report.md"]):
        assert made.count("### Map of the bank") == 1
        [(improve, of)] = re.findall(r"\((\d+)/(\d+)\) of its memories improve", made)
        assert re.findall(r"elm: (\d+) memories; (\d+) fixed more", made) == [(of, improve)] == [("16", improve)]
        assert "| sums | elm | 16 | " in made  # beside its thresholds
    assert re.findall(r"rollouts that agree: (\w+) from", text) == ["ttrl", "elm"]


# --- what is missing, hostile or broken -------------------------------------------------------------------------


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    lines = [answer("icl", n, True) for n in range(3)] + [answer("elm_kv", 0, None), learn("elm_kv", 0)]
    text = written(write_run(tmp_path / "run", lines, methods=["zero_shot", "icl", "elm_kv"]))["report.md"]
    assert "zero\\_shot, seed 0: 0 of 3 answers on sums" in text
    assert "elm\\_kv, seed 0: 1 of 3 answers on sums" in text
    assert "icl beside zero\\_shot: there is no pair to compare" in text
    assert "no keys are stored with this run: the map is left out" in text
    assert "| elm\\_kv | – |" in text


def test_data_that_could_not_be_used_is_listed(tmp_path: Path) -> None:
    fault = {"where": "line 12", "reason": "the answer field is missing"}
    told = {"name": TASK, "questions": 3, "faults": [fault], "duplicates": [["q0", "q2"]]}
    text = written(write_run(tmp_path / "run", [answer("icl", 0, True)], task_sets={TASK: told}))["report.md"]
    assert "| not used | line 12 | the answer field is missing |" in text
    assert "| equal | q0, q2 |  |" in text


def test_stored_text_cannot_break_a_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> | `x` ](javascript:1)\n# no title \x1b[31m \ud800 *"
    lines = [answer("zero_shot", 0, True), answer("icl", 0, None, failure=evil), answer("icl", 1, True, family=evil)]
    made = written(write_run(tmp_path / "run", lines, model={"name": evil, "id": "x"}))
    assert not Page(made["report.html"]).all("script")
    assert "<script" not in made["report.md"].replace("\\<script", "")
    assert "\n# no title" not in made["report.md"]
    assert "\x1b" not in made["report.md"] + made["report.html"]


def test_many_methods_and_seeds_can_be_drawn(tmp_path: Path) -> None:
    names = ["zero_shot", *(f"elm_{n}:with_a_long_name" for n in range(21))]
    lines = [answer(name, n, (n + len(name)) % 2 == 0) for name in names for n in range(3)]
    assert len(Page(written(write_run(tmp_path / "run", lines))["report.html"]).all("svg")) == 3


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("generations.jsonl", '{"phase": "answer"\n', "line 1"),
        ("generations.jsonl", "[1]\n", "line 1"),
        ("generations.jsonl", "{}\n", "line 1"),
        ("generations.jsonl", '{"phase": "dance", "method": "icl"}\n', "line 1"),
        ("generations.jsonl", "\xff\n", "line 1"),
        ("items.jsonl", '{"task": "sums"}\n', "line 1"),
        ("items.jsonl", "null\n", "line 1"),
        ("run.json", "{", "run.json"),
        ("run.json", "[]", "run.json"),
        ("run.json", '{"format": 99}', "format 99"),
        ("generations.jsonl", "", "no answered question yet"),
    ],
)
def test_a_broken_folder_is_one_sentence(tmp_path: Path, file: str, text: str, words: str) -> None:
    folder = write_run(tmp_path / "run", [answer("icl", 0, True)])
    (folder / file).write_bytes(text.encode("latin-1"))
    result = bench_report(folder)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not (folder / "report").exists()


def test_packed_lines_give_the_same_report(tmp_path: Path) -> None:
    plain = written(write_run(tmp_path, whole_stream()))
    lines = tmp_path / "generations.jsonl"
    packed = tmp_path / "generations.jsonl.xz"
    packed.write_bytes(lzma.compress(lines.read_bytes()))
    lines.unlink()
    assert written(tmp_path) == plain
    packed.write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read"):
        read_run(tmp_path)


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [answer("icl", 0, True)])
    with (folder / "generations.jsonl").open("a") as file:
        file.write('{"line":2,"phase":"ans')
    assert "100.0 % (1/1)" in written(folder)["report.md"]


# --- the command ------------------------------------------------------------------------------------------------


def small(folder: Path) -> Path:
    lines: list[GenerationLine] = [answer("zero_shot", n, n > 1) for n in range(4)]
    return write_run(folder, [*lines, *(answer("elm_kv", n, n != 3) for n in range(4))], items=[item(0)] * 4)


def test_the_command_writes_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = small(tmp_path / "run")
    result = bench_report(folder)
    assert result.exit_code == 0, result.output
    assert "75.0 % (3/4)" in result.stdout
    assert str(folder / "report" / "report.html") in result.stdout
    assert sorted(path.name for path in (folder / "report").iterdir()) == sorted(FILES)


def test_the_command_speaks_json(tmp_path: Path) -> None:
    result = bench_report(small(tmp_path / "run"), "--out", tmp_path / "there", "--json")
    found = json.loads(result.stdout)
    assert found["files"] == [str(tmp_path / "there" / name) for name in FILES]
    assert found["tasks"][0]["methods"][1]["versus"]["fixed"] == 2


def test_a_folder_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    result = bench_report(tmp_path / "none")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected the folder of a run" in result.stderr


def test_an_out_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = bench_report(small(tmp_path / "run"), "--out", tmp_path / "file" / "x")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert result.stderr.count("\n") == 1


def test_seeds_that_lack_alike_are_one_line(tmp_path: Path) -> None:
    lines = [answer("icl", n, True, seed=seed) for seed in range(3) for n in range(3)] + [
        answer("elm", 0, True, seed=1)
    ]
    folder = write_run(tmp_path / "run", lines, methods=["icl", "elm"], seeds=[0, 1, 2])
    assert build(read_run(folder)).unfinished == (
        "elm, seeds 0, 2: 0 of 3 answers on sums",
        "elm, seed 1: 1 of 3 answers on sums",
    )


def test_what_a_transfer_has_left(tmp_path: Path) -> None:
    sets = {"a": {"name": "sums"}, "b": {"name": "products"}}
    plan = {"tasks": ["b"], "sources": ["a"]}
    lines = [answer("zero_shot", 0, True, task="products"), answer("elm_kv", 0, True)]
    folder = write_run(tmp_path / "run", lines, protocol="transfer", plan=plan, task_sets=sets)
    with (folder / "items.jsonl").open("a") as file:
        file.writelines(
            json.dumps({"task": "products", "id": f"p{n}", "question": "?", "answer": "1", "family": "x"}) + "\n"
            for n in range(2)
        )
    assert build(read_run(folder)).unfinished == (
        "zero_shot, seed 0: 1 of 2 answers on products",
        "elm_kv, seed 0: 0 of 2 answers on products, memories from sums",
    )


def test_what_a_matrix_has_left(tmp_path: Path) -> None:
    lines = [line for line in whole_matrix(questions=3, seeds=1) if (line.learner, line.item_id) != ("q2", "q1")]
    run = read_run(write_run(tmp_path / "run", lines, protocol="offline"))
    assert build(run).unfinished == ("elm, seed 0: 8 of 9 answers on sums",)
