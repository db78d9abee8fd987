"""How ``memories why`` tells the story of one memory to people. Reads records only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from elm_agent.cli.output import Output, short, sparkline, to_json, when

if TYPE_CHECKING:
    from elm_agent.records import Episode, EventRecord, MemoryRecord, UseRecord
    from elm_agent.storage.posterior import Posterior


def show_lineage(
    out: Output,
    *,
    memory: MemoryRecord,
    episode: Episode,
    uses: Sequence[UseRecord],
    events: Sequence[EventRecord],
    worth: Posterior,
    rollouts: bool = False,
) -> None:
    """Print question, votes, curve, uses, history, model and recipe, in this order."""
    pinned = ", pinned" if memory.pinned else ""
    out.say(f"{memory.id}: {memory.state}{pinned}{f', {memory.reason}' if memory.reason else ''}")
    out.say(f"made from: {memory.question}")
    _places(out, events)
    seconds = f"{episode.seconds:.1f} s, {episode.seconds_per_step:.3g} s a step"
    out.say(f"majority answer: {episode.majority_answer}; seed {episode.seed}; {seconds}\n")
    _votes(out, episode)
    _curve(out, episode)
    if rollouts:
        _rollouts(out, episode)
    _uses(out, memory, uses, worth)
    out.say("history")
    rows = [
        (event.revision, when(event.created_at), event.kind, event.actor, to_json(event.detail)) for event in events
    ]
    out.table(("revision", "when", "what", "by", "detail"), rows)
    _provenance(out, memory, events)


def _places(out: Output, events: Sequence[EventRecord]) -> None:
    from elm_agent.storage.superseding import lineage_of

    found = lineage_of(events)
    if found.supersedes:
        out.say(f"took the place of: {', '.join(found.supersedes)}")
    if found.superseded_by is not None:
        out.say(f"its place was taken by: {found.superseded_by}")


def _votes(out: Output, episode: Episode) -> None:
    last = max((rollout.step for rollout in episode.rollouts), default=0)
    counts = Counter(rollout.answer for rollout in episode.rollouts if rollout.step == last)
    rows = [(count, "no answer" if answer is None else short(answer)) for answer, count in counts.most_common(8)]
    out.say(f"votes of step {last}, as written")
    out.table(("votes", "answer"), rows)
    failed = sum(rollout.failure is not None for rollout in episode.rollouts)
    out.say(f"{failed} of {len(episode.rollouts)} rollouts could not be judged\n" if failed else "")


def _curve(out: Output, episode: Episode) -> None:
    steps = episode.curve
    out.say(f"vote share {sparkline([step.vote_share for step in steps], low=0, high=1)}")
    out.say(f"reward     {sparkline([step.reward_mean for step in steps], low=0, high=1)}")
    columns = ("step", "vote share", "reward", "KL", "loss", "grad norm", "majority")
    rows = [
        (
            step.step,
            step.vote_share,
            step.reward_mean,
            f"{step.kl:.4g}",
            f"{step.loss:.4g}",
            f"{step.grad_norm:.4g}",
            short(step.majority_answer, 30),
        )
        for step in steps
    ]
    out.table(columns, rows)
    out.say("")


def _rollouts(out: Output, episode: Episode) -> None:
    rows = [(item.step, item.index, item.reward, item.failure or item.answer, item.text) for item in episode.rollouts]
    out.say("rollouts")
    out.table(("step", "rollout", "reward", "answer", "text"), rows)


def told_worth(worth: Posterior) -> str:
    """What a memory is worth, in words."""
    counts = f"helped {worth.helped:g}, no difference {worth.same:g}, hurt {worth.hurt:g}, prior included"
    return f"{worth.utility:+.3f} ± {worth.deviation:.3f} ({counts}); harmful with probability {worth.harm:.3f}"


def _uses(out: Output, memory: MemoryRecord, uses: Sequence[UseRecord], worth: Posterior) -> None:
    out.say(f"used {memory.uses} times; fixed {memory.fixed}, broken {memory.broken}")
    out.say(f"utility {told_worth(worth)}")
    if uses:
        columns = ("id", "when", "similarity", "key", "route", "outcome", "feedback", "answer", "question")
        rows = [
            (
                use.id,
                when(use.created_at),
                float(use.similarity),
                use.key_kind,
                use.route,
                use.outcome,
                use.feedback or "",
                short(use.answer, 20),
                short(use.question, 50),
            )
            for use in uses
        ]
        out.table(columns, rows)
    out.say("")


def _provenance(out: Output, memory: MemoryRecord, events: Sequence[EventRecord]) -> None:
    model = memory.model
    counted = [event.detail for event in events if "parameters" in event.detail]  # as it was made or came in
    size = ", {parameters} numbers in {bytes} bytes".format(**counted[0]) if counted else ""
    out.say(f"\nmodel {model.name}: weights {model.weights}, tokenizer {model.tokenizer}, template {model.template}")
    out.say("recipe " + ", ".join(f"{name}={value}" for name, value in asdict(memory.recipe).items()))
    shape = f"{memory.recipe.parameterisation}, {memory.virtual_tokens} x {memory.width}{size}"
    out.say(f"tensor {memory.tensor_digest} ({shape}); job {memory.job_id}")
    out.say(f"elm_agent {memory.library_version}, format {memory.format_version}")
