"""The model ``elm_agent`` of the LM Evaluation Harness: its prompts, our engine, a bank that is only read.

Written against lm-eval 0.4.13. Knows the harness's requests; how a prompt is answered with memories, see ``answers``.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from elm_agent import __version__
from elm_agent.errors import InputError
from elm_agent.integrations.lm_eval.answers import Prompt, Way
from elm_agent.integrations.lm_eval.opening import opened, settings_of, temperature_of, way_of
from elm_agent.models.scoring import score
from elm_agent.records import digest_of

logger = logging.getLogger(__name__)

TOGETHER = 16  # prompts at a time where the harness says "auto"


@register_model("elm_agent")
class ElmAgentLM(TemplateLM):  # type: ignore[misc]  # the harness is not typed
    """Arguments, as in ``--model_args home=DIR,namespace=NAME,route=both``.

    Args:
        home, namespace, model: as in the settings; what is left out comes from ``ELM_...`` variables or defaults.
        route: "both" answers, of which one is chosen as the agent does; "memory" or "zero_shot" alone.
        query: the field of a document that is looked up in the bank; None: the last thing the user says where a chat
            template is applied, else the whole prompt.
        settings: a TOML file of settings.
        max_gen_toks: most tokens of an answer whose task does not say.
        seed: of sampling, for tasks that ask for it.
        batch_size: prompts at a time, and continuations of one prompt; "auto" is 16.
        others: any setting, ``SECTION__NAME`` for those of a section: ``retrieval__min_similarity=0.8``. Not as in
            the settings, ``retrieval__exclude_same_question`` is true: no memory serves its own question.

    Raises:
        SettingsError, NotFound: settings that are wrong; a bank or namespace that is not there.
    """

    def __init__(
        self,
        home: str | None = None,
        namespace: str | None = None,
        route: str = "both",
        model: str | None = None,
        *,
        query: str | None = None,
        settings: str | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        del max_batch_size  # what fits is found by the engine itself
        named = {"home": home, "namespace": namespace, "model": model, "device": device}
        self._way = way_of(route)
        self._settings = settings_of(settings, named, others)
        self._query = query
        self._seed = seed
        self._max_new_tokens = max_gen_toks
        self._together = TOGETHER if str(batch_size).startswith("auto") else int(batch_size)
        self._said: dict[str, str] = {}  # by rendered chat: what the user said last
        self._looked_up: dict[str, str] = {}  # by context: what is looked up for it
        self._cut = 0
        self._opened = ExitStack()
        self._model, self._answers, self._bank = opened(self._settings, self._way, self._opened)

    def close(self) -> None:
        """Let go of model and bank. Idempotent."""
        self._opened.close()

    # --- what the harness wants to know ----------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        return self._model.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """Names the rendered prompts that the harness may cache."""
        return self._model.fingerprint.name.replace("/", "__")

    @property
    def max_length(self) -> int:
        return self._model.context_length

    @property
    def max_gen_toks(self) -> int:
        return self._max_new_tokens

    @property
    def batch_size(self) -> int:
        return self._together

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    def get_model_info(self) -> dict[str, Any]:
        """What stands in the results beside the harness's own: which model and bank, and which way answers took."""
        fingerprint = self._model.fingerprint
        return {
            "elm_agent": {
                "version": __version__,
                "model": fingerprint.name,
                "fingerprint": fingerprint.id,
                "route": self._way.value,
                "task": self._settings.task,
                **self._bank,
                "routes": dict(self._answers.told),
                "prompts_cut": self._cut,
            }
        }

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as text. What the user said last is remembered: it is what is looked up in the bank."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        self._said[text] = next((m["content"] for m in reversed(chat_history) if m["role"] == "user"), text)
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As the harness's own ``hf``: what a tokenizer puts first is not put before a text that has it already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        return list(self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"])

    # --- what is asked ---------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """One text for each request."""
        asked: Counter[str] = Counter()
        prompts = []
        for request in requests:
            prompts.append(self._prompt(request, asked[request.args[0]]))
            asked[request.args[0]] += 1
        answered = self._answers.of(prompts, together=self._together)
        texts = list(tqdm(answered, "answering", len(prompts), disable=disable_tqdm))
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether it is greedy) of each continuation after its context."""
        asking = [request for request in requests if request.args[0] and self._way is Way.MEMORY]
        self._looked_up = {request.args[0]: self._question(request) for request in asking}
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text, by the plain model: such a text is no question."""
        self._looked_up = {}
        totals = []
        for request in tqdm(requests, "scoring texts", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Continuations of one context are scored together, and the context is read once."""
        groups: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
        for n, (texts, context, continuation) in enumerate(requests):
            question = "" if texts is None else self._looked_up.get(texts[0], "")
            groups[question, tuple(self._fitting(question, context, continuation))].append(n)
        scores: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), desc="scoring", disable=disable_tqdm) as bar:
            for (question, context_ids), members in groups.items():
                memory = self._answers.memory_of(question) if question else None
                continuations = [requests[n][2] for n in members]
                found = score(self._model, context_ids, continuations, memory=memory, rows=self._together)
                for n, one in zip(members, found, strict=True):
                    scores[n] = (one.logprob, one.greedy)
                    if requests[n][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[n][0], scores[n])
                bar.update(len(members))
        return [scores[n] for n in range(len(requests))]

    # --- parts -----------------------------------------------------------------------------------------------------

    def _prompt(self, request: Any, repetition: int) -> Prompt:
        text, arguments = request.args
        chosen = dict(normalize_gen_kwargs(arguments, self._max_new_tokens))
        limit = int(chosen["max_gen_toks"])
        room = self.max_length - limit - self._positions
        if room < 1:
            raise InputError(
                f"{limit} new tokens leave no room in a context of {self.max_length}: lower max_gen_toks"
            )
        return Prompt(
            ids=tuple(self._last(self.tok_encode(text), room)),
            question="" if self._way is Way.ZERO_SHOT else self._question(request),
            max_new_tokens=limit,
            stop=tuple(filter(None, chosen["until"])),
            temperature=temperature_of(chosen),
            seed=int(digest_of([self._seed, text, repetition]).removeprefix("sha256:")[:12], 16),
        )

    @property
    def _positions(self) -> int:
        """That a memory may take before a prompt."""
        return 0 if self._way is Way.ZERO_SHOT else self._settings.learning.virtual_tokens

    def _fitting(self, question: str, context: list[int], continuation: list[int]) -> list[int]:
        """The end of the context that fits before the continuation, whose last token is not read."""
        memory = self._answers.memory_of(question) if question else None
        room = self.max_length + 1 - (0 if memory is None else memory.virtual_tokens) - len(continuation)
        if room < 1:
            raise InputError(
                f"a continuation of {len(continuation)} tokens does not fit the context of {self.max_length}"
            )
        return self._last(context, room)

    def _last(self, ids: list[int], room: int) -> list[int]:
        if len(ids) > room:
            self._cut += 1
            logger.warning("a prompt of %d tokens is cut to its last %d: more do not fit the model", len(ids), room)
        return ids[-room:]

    def _question(self, request: Any) -> str:
        """What is looked up in the bank for a request. Raises ``InputError`` for a document without the field."""
        if self._query is None:
            text: str = request.args[0]
            return self._said.get(text, text)
        found = request.doc.get(self._query)
        if not isinstance(found, str):
            known = ", ".join(sorted(request.doc))
            raise InputError(f"query={self._query!r} names no text of a document: its fields are {known[:200]}")
        return found
