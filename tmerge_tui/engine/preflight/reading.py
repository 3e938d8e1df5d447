"""The text as both models will read it, before anything big is downloaded.

Tokenizers and templates are among the small files, so what they make of the text is known in the check: templates that
refuse or rewrite, ids beyond the embedding, samples without tokens or rows, text that a tokenizer cannot hold. The
first SAMPLE texts of each kind are read, all of them where a problem is possible at all.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tmerge_tui.engine.activations.pooling import encode
from tmerge_tui.engine.data.corpus import Corpus, Sample
from tmerge_tui.engine.data.general_text import GeneralText
from tmerge_tui.engine.data.records import whole_text
from tmerge_tui.engine.data.tokens import is_spaceless
from tmerge_tui.engine.evaluation.bits_per_byte import text_of
from tmerge_tui.engine.evaluation.multiple_choice import choice_of, read_choices
from tmerge_tui.engine.evaluation.safety import given
from tmerge_tui.engine.preflight.templates import refused, template_notes
from tmerge_tui.engine.prepared import Party
from tmerge_tui.engine.training.examples import read_examples
from tmerge_tui.errors import DataError
from tmerge_tui.models.pair import Pair
from tmerge_tui.models.tokenizer import differing
from tmerge_tui.recipe import Recipe

SAMPLE = 200  # texts of each kind
PROBED = 4000  # characters of a text that are read back
UNREAD = 0.02  # share of a text that a model may be unable to read and still be compared with others


@dataclass(frozen=True)
class Reading:
    """What both models make of the text; figures are of the whole calibration text, from what was read of it."""

    rows: int  # T
    tokens: int  # of the model that reads more
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    comparable: bool  # whether the source can read the held-out text, so that its bits per byte mean something
    answerable: bool = True  # whether it can read the questions of evaluation.choices


def read_text(
    recipe: Recipe,
    source: Party,
    target: Party,
    corpus: Corpus,
    training: Sequence[Sample],  # empty when it is the calibration's
    general: Sequence[Sample] = (),
) -> Reading:
    """Renders and encodes with both tokenizers."""
    problems, warnings = [], []
    reads_training = recipe.adaptation is not None
    examples = (training or corpus.calibration) if reads_training else ()
    for party in (source, target):
        conversations = [*corpus.calibration, *(training if party is target else ())]
        problems += refused(recipe, party, conversations)
    problems += [
        f"evaluation.prompts: {prompt.encode('utf-8', 'backslashreplace').decode()!r} holds half a character "
        f"(a lone surrogate)"
        for prompt in recipe.evaluation.prompts
        if whole_text(prompt) != prompt
    ]
    if problems:  # what cannot be rendered cannot be encoded
        return Reading(0, 0, tuple(problems), (), True)
    warnings += template_notes(recipe, Pair(target=target, source=source), corpus.calibration[:SAMPLE])
    tokens, counts = 0, []
    for party in (source, target):
        problems += _beyond(recipe, party, corpus, examples, general)
        sample = corpus.calibration[:SAMPLE]
        settings = recipe.calibration
        read = encode(sample, party.tokenizer, settings.max_length, settings.pooling, settings.chat_template)
        counts.append(read)
        tokens = max(tokens, sum(len(one.ids) for one in read))
    words = [[w for w in one.tokens if w in other.tokens] for one, other in zip(*counts, strict=True)]
    share = len(corpus.calibration) / max(len(words), 1)
    letters = sum(is_spaceless(one.plain[:PROBED]) for one in sample) if recipe.calibration.pooling == "span" else 0
    if letters:
        warnings.append(
            f"{letters} of the first {len(sample)} calibration samples are written without spaces: each letter, with "
            f"its marks, is a word of pooling: span"
        )
    warnings += _empty(recipe, words, [[len(one.ids) for one in read] for read in counts])
    if sum(map(len, words)) == 0:
        problems.append(_no_rows(recipe, len(words)))
    comparable = True
    for party in (source, target):
        warnings += _otherwise(party, corpus)
        lost = unread(party.tokenizer, [sample.plain[:PROBED] for sample in corpus.holdout[:SAMPLE]])
        if party is source and lost > UNREAD:
            comparable = False
        if lost > 0.0005:
            warnings.append(_lossy(party, lost))
        warnings += _unscored(party, recipe, corpus)
    if reads_training:
        warnings += _unlearnt(recipe, target, examples[:SAMPLE])
    problems += _choices(recipe, target)
    unanswered, answerable = _unread_questions(recipe, source, target)
    warnings += unanswered
    rows = round(share * sum(map(len, words)))
    return Reading(rows, round(share * tokens), tuple(problems), tuple(dict.fromkeys(warnings)), comparable, answerable)


def reads_general(text: GeneralText, source: Party, target: Party) -> tuple[GeneralText, list[str]]:
    """(the text, not comparable where the source cannot read it; what is to be known)."""
    warnings = []
    for party in (source, target):
        lost = unread(party.tokenizer, [sample.plain[:PROBED] for sample in text.measured[:SAMPLE]])
        if lost > 0.0005:
            warnings.append(_lossy(party, lost, text.name))
        if party is source and lost > UNREAD:
            text = replace(text, comparable=False)
    return text, warnings


def unread(tokenizer: Any, texts: Sequence[str]) -> float:
    """The share of characters, white space aside, that do not come back from encoding and decoding: those of unknown
    tokens, and what a normaliser takes away (case, accents). Spellings of one character (NFKC) count as one; special
    tokens that a text writes out are read."""
    lost = whole = 0
    unknown = {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id}
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        there = _characters(text)
        lost += (there - _characters(tokenizer.decode([i for i in ids if i not in unknown]))).total()
        whole += there.total()
    return lost / whole if whole else 0.0


def _characters(text: str) -> Counter[str]:
    return Counter("".join(unicodedata.normalize("NFKC", text).split()))


def _beyond(
    recipe: Recipe, party: Party, corpus: Corpus, examples: Sequence[Sample], general: Sequence[Sample]
) -> list[str]:
    """Token ids of the text that the model has no embedding for."""
    rows, tokenizer = party.facts.rows, party.tokenizer
    special = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
    if max((*tokenizer.get_vocab().values(), *special), default=0) < rows:
        return []
    texts = [("the general text", text_of(s.plain, tokenizer, recipe.calibration.max_length).ids) for s in general]
    for where, ids in (("special tokens", special), *_read(recipe, party, corpus, examples), *texts):
        worst = max(ids, default=0)
        if worst >= rows:
            return [
                f"{party.role}: {where} holds the token {tokenizer.convert_ids_to_tokens(worst)!r} with id {worst}; "
                f"{party.facts.name} has embeddings for {rows} tokens\n  expected: a tokenizer that fits its model\n  "
                f"next: take the added tokens out of its tokenizer files, or give the embedding rows for them "
                f"(resize_token_embeddings, save_pretrained)"
            ]
    return []


def _read(
    recipe: Recipe, party: Party, corpus: Corpus, examples: Sequence[Sample]
) -> Iterator[tuple[str, Sequence[int]]]:
    """(what it is of, ids) of every text that this model will be given."""
    settings, tokenizer = recipe.calibration, party.tokenizer
    for one in encode(corpus.calibration, tokenizer, settings.max_length, "sample", settings.chat_template):
        yield "the calibration text", one.ids
    for sample in (*corpus.holdout, *corpus.validation):
        yield "the held-out text", text_of(sample.plain, tokenizer, settings.max_length).ids
    options = recipe.adaptation
    if options is not None and (party.role == "target" or options.hints is not None or options.distilled):
        for example in read_examples(examples, tokenizer, 0, settings.chat_template):
            yield "the training text", example.ids
    for prompt in recipe.evaluation.prompts:
        yield "evaluation.prompts", tokenizer(prompt, verbose=False)["input_ids"]
    if party.role == "target" or recipe.evaluation.source:
        for ids in given(recipe.evaluation.safety, tokenizer):
            yield "evaluation.safety", ids
    for choices in recipe.evaluation.choices:
        try:
            questions = read_choices(choices)
        except DataError:  # the check of benchmarks says it
            continue
        for question in questions:
            for choice in question.choices:
                yield "evaluation.choices", tokenizer(f"{question.context} {choice}", verbose=False)["input_ids"]


def _empty(recipe: Recipe, words: Sequence[Sequence[Any]], lengths: Sequence[Sequence[int]]) -> list[str]:
    without = sum(not found for found in words)
    if not without:
        return []
    silent = sum(not (a and b) for a, b in zip(*lengths, strict=True))
    said = [f"{without} of the first {len(words)} calibration samples give no row of activations"]
    if silent:
        said.append(f"{silent} of them have no token in one of the models")
    if without > silent:
        said.append(f"the words of the others end behind max_length {recipe.calibration.max_length} in one of them")
    return ["; ".join(said)]


def _no_rows(recipe: Recipe, read: int) -> str:
    return (
        f"calibration: none of {read} samples gives a row of activations\n  expected: text that both models read"
        f"\n  next: raise calibration.max_length, or set calibration.pooling: sample"
    )


def _otherwise(party: Party, corpus: Corpus) -> list[str]:
    """Says when the tokenizer is not the file's, on what the folder's probes show or on the user's own text."""
    tokenizer = party.tokenizer
    note = getattr(tokenizer, "tmerge_note", "")
    if not note:
        texts = [sample.plain[:PROBED] for sample in (*corpus.calibration[:SAMPLE], *corpus.holdout[:SAMPLE])]
        text = differing(tokenizer, Path(tokenizer.name_or_path), texts)
        note = "" if text is None else f"transformers reads {text[:40]!r} otherwise than the tokenizer's own file"
    return [f"{party.role}: the tokenizer of {party.facts.label}: {note}"] if note else []


def _lossy(party: Party, lost: float, text: str = "the held-out text") -> str:
    what = f"{party.role}: the tokenizer of {party.facts.label} cannot read {lost:.1%} of {text}"
    if lost <= UNREAD:
        return f"{what}; bits per byte count that part as read"
    if party.role == "source":
        return f"{what}: its bits per byte would say nothing, so it is not measured"
    return f"{what}: its bits per byte compare it with its own results, and with no other model"


def _unscored(party: Party, recipe: Recipe, corpus: Corpus) -> list[str]:
    texts = [text_of(s.plain, party.tokenizer, recipe.calibration.max_length) for s in corpus.holdout[:SAMPLE]]
    without = sum(not text.bytes for text in texts)
    told = f"{party.role}: {without} of the first {len(texts)} held-out texts have no token that can be scored"
    return [told] if without else []


def _unlearnt(recipe: Recipe, target: Party, samples: Sequence[Sample]) -> list[str]:
    options, mode = recipe.adaptation, recipe.calibration.chat_template
    assert options is not None
    length = options.block_length if options.packing == "pad" else 0
    answers = options.answer_only and any(sample.messages for sample in samples)
    found = read_examples(samples, target.tokenizer, length, mode, answers)
    without = sum(not any(label >= 0 for label in example.labels) for example in found)
    return [f"{without} of the first {len(samples)} training samples have nothing to learn from"] if without else []


def _unread_questions(recipe: Recipe, source: Party, target: Party) -> tuple[list[str], bool]:
    """(what to say of questions that a model cannot read, whether the source can be asked)."""
    warnings, answerable = [], True
    for choices in recipe.evaluation.choices:
        try:
            questions = read_choices(choices)[:SAMPLE]
        except DataError:  # the check of benchmarks says it
            continue
        texts = [text[:PROBED] for one in questions for text in (one.context, *one.choices)]
        for party in (source, target):
            if party is source and not recipe.evaluation.benchmark_source:
                continue
            lost = unread(party.tokenizer, texts)
            if lost > UNREAD:
                end = "its answers say little"
                if party is source:
                    answerable, end = False, "it is not asked"
                told = (
                    f"evaluation.choices, {choices.title}: the tokenizer of {party.facts.label} cannot read {lost:.1%}"
                )
                warnings.append(f"{told} {lost:.1%} of the questions: {end}")
    return warnings, answerable


def _choices(recipe: Recipe, target: Party) -> list[str]:
    """The first choice of each file that leaves nothing to score."""
    problems = []
    for choices in recipe.evaluation.choices:
        try:
            for question in read_choices(choices)[:SAMPLE]:
                for choice in question.choices:
                    choice_of(question.context, choice, target.tokenizer, target.facts.positions)
        except DataError as error:
            problems.append(f"evaluation.choices, {choices.title}: {error}")
    return problems
