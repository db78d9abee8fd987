"""The README cannot lie: its code runs, its picture is the compiled graph, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from elm_agent.integrations.langgraph import draw_graph

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_python_block_runs(short_environment: dict[str, str], tiny_model: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    code = "\n".join(blocks).replace('"smollm2-135m"', repr(str(tiny_model))) + "\nprint(sorted(out))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], env=short_environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for name in ("answer", "route", "candidates", "memory_id", "similarity", "job_id"):
        assert repr(name) in done.stdout


def test_the_picture_is_the_compiled_graph() -> None:
    """To renew it: python -m elm_agent.integrations.langgraph.draw README.md"""
    picture = README.split("<!-- graph: begin")[1].split("-->\n", 1)[1].split("<!-- graph: end -->")[0]
    assert picture.strip() == draw_graph().strip()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_make_target_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
