"""Published losses of the benchmark's results as check values, and settings in words.

The leaderboard gives the mean loss of each result at the step where it is scored, and the number of
runs. Losses by step are known of results 12 and 36 alone, from one log each. Where the head starts
from zero, the first loss is the logarithm of the vocabulary.

Source: KellerJordan/modded-nanogpt, records/track_3_optimization: README and logs.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

from polarlight.lab.statistics import BySeed
from polarlight.lab.train.shards import GPT2_VOCAB_SIZE
from polarlight.lab.train.track3.settings import PRESETS, Track3, setting_of
from polarlight.leaderboard import Result, record

SIGMA = 0.0013
"""Deviation of the last loss between seeds, by the benchmark's README."""

AGREES = 1.96
"""Largest difference that agrees, in standard errors: one correct run in twenty lies beyond."""

BY_STEP: Mapping[int, Mapping[int, float]] = {
    12: {500: 3.83472, 1000: 3.64527, 2000: 3.44642, 3000: 3.31193},
    33: {0: 10.968},
    36: {2925: 3.31393},
}
"""Validation losses of single runs by result and step."""

OF_PRESET = {"record-12": 12, "record-36": 36}


def initial_loss(vocab_size: int) -> float:
    """Return the loss of a head of zeros."""
    return math.log(vocab_size)


def published(number: int) -> dict[int, float]:
    """Return the losses that are known of a result, by step."""
    found = record(number)
    first = {} if found.initial == "K" else {0: initial_loss(GPT2_VOCAB_SIZE)}
    return {**first, **BY_STEP.get(number, {}), found.steps: found.loss}


def is_full_size(setting: Track3, what: Result) -> bool:
    """Tell whether a run is the result as published: full size, every part, own length."""
    own = record(what.number)
    same = replace(setting, seed=0) == setting_of(own, PRESETS["full"])
    return same and what.label == own.label


def number_of(setting: Track3) -> int | None:
    """Return the result that a preset of plain Muon stands for, None if there is none."""
    plain = replace(setting, seed=0)
    return next((n for name, n in OF_PRESET.items() if plain == PRESETS[name]), None)


def check(number: int, step: int, loss: float) -> str:
    """Compare a loss with the published one of this step; empty if there is none.

    Examples:
        >>> check(12, 1000, 3.65)
        'published for result 12: 3.6453, here +0.0047'
    """
    known = published(number).get(step)
    if known is None:
        return ""
    return f"published for result {number}: {known:.4f}, here {loss - known:+.4f}"


def verdict(number: int, losses: BySeed) -> str:
    """Return whether full-size runs end where the published ones do, in a sentence.

    The means of n and of the published n' runs differ by at most 1.96 sigma sqrt(1/n + 1/n') in 19
    of 20 correct repetitions, sigma = 0.0013.

    Examples:
        >>> verdict(46, {0: 3.2790})
        'result 46 agrees: 3.2790 here (1 run), 3.2783 published (8); +0.0007, at most 0.0027'
    """
    found = record(number)
    mean, n = fmean(losses.values()), len(losses)
    difference = mean - found.loss
    most = AGREES * SIGMA * math.sqrt(1 / n + 1 / found.runs)
    if not math.isfinite(mean):
        return f"result {number} is not reproduced: no finite loss"
    said = "agrees" if abs(difference) <= most else "is not reproduced"
    runs = "1 run" if n == 1 else f"{n} runs"
    return (
        f"result {number} {said}: {mean:.4f} here ({runs}), {found.loss:.4f} published "
        f"({found.runs}); {difference:+.4f}, at most {most:.4f}"
    )


def described(what: Result, setting: Track3) -> list[str]:
    """Return everything that decides a run, line by line, for a comparison with its script."""
    recipe, s = what.recipe(), setting
    own_rule = "" if recipe.rule is None else f"; rule {recipe.rule.name}"
    reduction = "mean" if s.mean_loss else "sum"
    aux = recipe.aux
    lines = [
        f"result {what.number}: {what.title}",
        f"model: {s.width} wide, {s.layers} blocks, heads of {s.head_dim}, norms in "
        + ("float32" if s.wide_norms else "the activations' dtype"),
        f"initial weights: {s.initial}",
        f"data: in order, {s.tokens_per_step} tokens per step = {s.accumulate} x {s.micro_batch} "
        f"x {s.context}; gradient of the {reduction} of the losses",
        f"steps: {s.steps}, rates fall until {s.schedule_steps}",
        f"validation: first {s.validation_tokens} tokens, after steps {_validations(s)}",
        f"hidden matrices: lr {recipe.lr:g}, weight decay {recipe.weight_decay:g}, momentum "
        f"{recipe.beta:g}{own_rule}",
        f"AdamW: lr {aux.embed:g} embed, {aux.head:g} head, {aux.vectors:g} vectors; beta1 "
        f"{aux.beta1:g}, beta2 0.95 {dict(aux.beta2) or ''}; eps 1e-10, weight decay "
        f"{aux.weight_decay:g}",
        *(f"part {part!r}" for part in what.parts),
        *_rates(what, s),
    ]
    known = published(what.number).items() if is_full_size(s, what) else ()
    return lines + [f"published: {loss:.4f} after step {step}" for step, loss in known]


def _validations(setting: Track3) -> str:
    """Return the steps of validations: regular ones, then those between them."""
    every = setting.validate_every
    between = [s for s in range(setting.steps + 1) if setting.validates(s) and s % every]
    more = f", and {', '.join(map(str, between))}" if between else ""
    return f"0, {every}, ...{more}"


def _rates(what: Result, setting: Track3) -> list[str]:
    """Return learning rates and other curves at some steps."""
    recipe = what.recipe()
    aux = recipe.cooldown if recipe.aux_cooldown is None else recipe.aux_cooldown
    lines = []
    for step in sorted({setting.steps * i // 8 for i in range(8)} | {setting.steps - 1}):
        others = "".join(f", {c.key} {c.curve(step):.6g}" for c in recipe.curves)
        hidden = recipe.lr * recipe.cooldown(step)
        lines.append(f"step {step}: lr {hidden:.6g}, AdamW's times {aux(step):.6g}{others}")
    return lines
