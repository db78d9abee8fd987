"""A real engine (tokenizer, chat template, memories) whose tokens are written down instead of drawn."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.models.serving import Drawn, Reply, Start, Tokens
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation
from elm_agent.testing.tiny import CHATML_TOOLS, write_tiny_model

Script = Callable[[str, "str | None"], str]
"""``script(prompt, memory_id)``: what comes next, with the prompt as the template wrote it."""

OPENER = "<tool_call>\n"
LOGPROB, CERTAINTY = -0.1, 0.5  # of every token


def words(prompt: str, memory_id: str | None) -> str:
    """Some words, other ones with a memory."""
    del prompt
    return "I think it is 56." if memory_id is None else "With this in mind it is 63."


def obliging(prompt: str, memory_id: str | None) -> str:
    """Calls the tool that it was made to begin with, or the first one; answers in words after a tool's result."""
    history, begun = prompt.rsplit("<|im_start|>assistant\n", 1)
    tools = [json.loads(line)["function"] for line in prompt.splitlines() if line.startswith('{"type": "function"')]
    if not tools or (not begun and "<|im_start|>tool" in history.rsplit("<|im_start|>user", 1)[-1]):
        return words(prompt, memory_id)
    named = [tool for tool in tools if f'"name": "{tool["name"]}"' in begun]
    tool = (named or tools)[0]
    asked = history.rsplit("<|im_start|>user\n", 1)[-1]
    call = json.dumps({"name": tool["name"], "arguments": _arguments(tool, asked)}, ensure_ascii=False)
    return f"{OPENER}{call}\n</tool_call>".removeprefix(begun)


def _arguments(tool: dict[str, Any], asked: str) -> dict[str, Any]:
    quoted = re.search(r"'(.+?)'", asked)
    text = quoted[1] if quoted else "cats"
    properties = tool["parameters"].get("properties", {})
    return {name: 3 if schema.get("type") == "integer" else text for name, schema in properties.items()}


class Written:
    """A ``Drawing`` that draws what ``script`` says, one character a token.

    ``hold``: rows wait for it before their last token; None: they do not.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[GenerationRequest] = []
        self.hold: threading.Event | None = None
        self._given_up: list[int] = []
        self.error: Exception | None = None

    def __call__(self, *_: Any, end_ids: Sequence[int], finish: Any, context_length: int, **_more: Any) -> Written:
        self._end, self._finish, self.context_length = end_ids[0], finish, context_length
        return self

    @property
    def given_up(self) -> int:
        """How many rows nobody waited for."""
        return len(self._given_up)

    def bind(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def submit(self, request: GenerationRequest, tokens: Tokens | None = None) -> Reply:
        self.requests.append(request)
        reply = Reply()
        threading.Thread(target=self._draw, args=(request, tokens, reply), daemon=True).start()
        return reply

    def submit_group(self, start: Start, rows: Sequence[Row]) -> list[Reply]:
        raise NotImplementedError

    def close(self) -> None:
        if self.hold is not None:
            self.hold.set()

    def _draw(self, request: GenerationRequest, tokens: Tokens | None, reply: Reply) -> None:
        try:
            outcome: object = self._row(request, tokens, reply)
        except Exception as error:  # noqa: BLE001 - a future carries whatever its row raised
            outcome = error
        if not reply.cancelled():
            reply.set_exception(outcome) if isinstance(outcome, Exception) else reply.set_result(outcome)
        if tokens is not None:
            tokens.put(None)

    def _row(self, request: GenerationRequest, tokens: Tokens | None, reply: Reply) -> Generation:
        prompt = self._tokenizer.decode(list(request.prompt_ids))
        memory_id = None if request.prefix is None else request.prefix.memory_id
        if self.error is not None and memory_id is not None:
            raise self.error
        ids = [*self._tokenizer(self.script(prompt, memory_id))["input_ids"], self._end][: request.max_new_tokens]
        for place, token in enumerate(ids):
            while self.hold is not None and place == len(ids) - 1 and not self.hold.wait(0.01):
                if reply.unwanted:
                    break
            if reply.unwanted:
                self._given_up.append(place)
                raise CancelledError
            if tokens is not None:
                tokens.put(Drawn(token, LOGPROB, CERTAINTY))
        row = Row(max_new_tokens=len(ids), tokens=ids, finished=ids[-1] == self._end)
        row.logprobs, row.certainties = [LOGPROB] * len(ids), [CERTAINTY] * len(ids)
        made: Generation = self._finish(row, 0.0)
        return made


def wait_until(true: Callable[[], bool]) -> None:
    """Return as soon as ``true()``; fail after half a minute."""
    pause = threading.Event()
    for _ in range(3000):
        if true():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come")


def written_model(folder: Path, script: Script = obliging, *, chat_template: str = CHATML_TOOLS) -> LocalModel:
    """An engine on a tiny model in ``folder``, which is made if it is not there. Its ``written`` is the drawing."""
    if not (folder / "config.json").exists():
        write_tiny_model(folder, width=16, context_length=4096, chat_template=chat_template)
    loaded = load_pretrained(str(folder), device="cpu", dtype="float32", offline=True)
    written = Written(script)
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint, drawer=written)
    written.bind(loaded.tokenizer)
    model.written = written  # type: ignore[attr-defined]
    return model
