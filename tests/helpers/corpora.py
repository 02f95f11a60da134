"""Small corpora made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flashlet.serving.distill.corpus import Answer, Corpus, CorpusInfo, CorpusWriter, Dialogue


def corpus_of(folder: Path, *answers: Answer, tokens: tuple[int, ...] = tuple(range(24))) -> Corpus:
    """One conversation of these tokens, in training, with these answers."""
    dialogue = Dialogue("chat", 0.0, tokens, answers, "asked", "about")
    with CorpusWriter(folder, CorpusInfo("model", (1,), 4, 0)) as writer:
        writer.append(0, False, dialogue, np.ones((len(tokens), 1, 4), np.float32))
    return Corpus(folder)
