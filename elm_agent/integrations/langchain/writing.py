"""What a model writes, piece by piece: cut at stop sequences, with calls of tools kept back until they are whole.

Knows texts; knows nothing of engines or messages.
"""

from __future__ import annotations

from collections.abc import Sequence

from elm_agent.models.toolcalls import Reading, ToolFormat


class Until:
    """Lets text through up to the first of some markers; what may be the beginning of one waits for more text."""

    def __init__(self, markers: Sequence[str]) -> None:
        self._markers = [marker for marker in markers if marker]
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """The text that is certain to be before the first marker. After it, nothing."""
        if self.found:
            return ""
        self._held += piece
        ends = [at for marker in self._markers if (at := self._held.find(marker)) >= 0]
        if ends:
            self.found = True
            return self._take(min(ends))
        return self._take(len(self._held) - self._undecided())

    def rest(self) -> str:
        """What was held back, when no more text comes."""
        return "" if self.found else self._take(len(self._held))

    def after(self) -> str:
        """The marker that was found, and what was fed after it in the same piece."""
        return self._held

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _undecided(self) -> int:
        """How many characters at the end may begin a marker."""
        longest = max(map(len, self._markers), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(marker.startswith(self._held[-count:]) for marker in self._markers):
                return count
        return 0


class Writing:
    """One answer as it is written: ``feed`` gives the words to show, ``end`` what is left, with the calls.

    Args:
        stop: sequences that end the answer, and do not belong to it.
        tools: how calls are written; None: nothing is read as a call.
        begin: what the answer was made to begin with.
    """

    def __init__(self, *, stop: Sequence[str] = (), tools: ToolFormat | None = None, begin: str = "") -> None:
        self._stop = Until(stop)
        self._tools = tools
        self._opener = Until([tools.opener] if tools is not None else [])
        self._calls: str | None = None  # from the first opener on
        self._words = False  # where calls have no opener: the answer began with a word, so it is none
        self._show(begin)

    @property
    def stopped(self) -> bool:
        """A stop sequence has come: what is drawn from now on is of no use."""
        return self._stop.found

    def feed(self, piece: str) -> str:
        return self._show(self._stop.feed(piece))

    def end(self) -> Reading:
        """What has not been shown yet."""
        shown = self._show(self._stop.rest()) + self._opener.rest()
        if self._tools is None or self._calls is None:
            return Reading(shown)
        reading = self._tools.read(self._calls)
        return Reading(shown + reading.content, reading.calls, reading.broken)

    def _show(self, text: str) -> str:
        if self._calls is not None:
            self._calls += text
            return ""
        if self._tools is None or self._words:
            return text
        if not self._tools.opener:
            return self._show_unopened(text)
        shown = self._opener.feed(text)
        if self._opener.found:
            self._calls = self._opener.after()
        return shown

    def _show_unopened(self, text: str) -> str:
        if text.lstrip()[:1] in ("{", "["):
            self._calls = text
            return ""
        self._words = bool(text.strip())
        return text
