"""Makes the small tokenizer: byte pairs of the words that captions and prompts are written in."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from geoseg.data.source import Source

PROMPTS = ("8k, Ultra-high resolution, Tile, Smooth Edges", "file")
"""What the models will be asked with, whether a caption says so or not."""

START, END, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
"""As in the tokenizer of CLIP (Radford et al. 2021)."""


def corpus_tokenizer(source: Source, captions: int = 2000, length: int = 32) -> CLIPTokenizer:
    """A tokenizer for the captions of a corpus and for ``PROMPTS``.

    Args:
        source: the corpus.
        captions: how many of its captions are looked at, the first ones.
        length: longest prompt in tokens, start and end included.
    """
    return train_tokenizer((source.read(name).caption for name in source.names[:captions]), length)


def train_tokenizer(texts: Iterable[str], length: int = 32, size: int = 2048) -> CLIPTokenizer:
    """Learns byte pairs; the same texts give the same tokenizer on every machine.

    Its vocabulary is laid out as CLIP's: all bytes, all bytes that end a word, the merged pairs, start and end. So any
    text at all can be written in it.

    Args:
        texts: what to learn from; ``PROMPTS`` are added.
        length: longest prompt in tokens, start and end included.
        size: most entries in the vocabulary.
    """
    plain = CLIPTokenizer().backend_tokenizer  # lends how text is split into words
    learner = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer, learner.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    letters = sorted(ByteLevel.alphabet())
    ends = [letter + END_OF_WORD for letter in letters]
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=letters,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    learner.train_from_iterator([*texts, *(2 * PROMPTS)], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    merges = merges[: size - len(letters) - len(ends) - 2]
    words = [*letters, *ends, *dict.fromkeys(first + second for first, second in merges), START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=merges, model_max_length=length
    )
