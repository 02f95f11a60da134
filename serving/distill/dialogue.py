"""How one conversation comes about: a request, written or the model's own, its answer, further turns."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from flashlet.model.chat_template import ChatTemplate
from flashlet.model.tokenizer import Tokenizer
from flashlet.serving.distill.corpus import Answer, Dialogue, text_key
from flashlet.serving.distill.topics import KINDS, STARTS, SYSTEM_PROMPTS, WITH_TEXT, WORDS
from flashlet.serving.distill.written import Requests

_MARK = "\ue000"  # a private-use character: no template has it
_SHORTEST = 12  # characters of a request that the model writes after examples
_MIN_POOL = 20  # texts before any is used, so that the first ones are not used all the time


@dataclass(frozen=True, slots=True)
class DialogueOptions:
    """What conversations look like."""

    written_share: float = 0.85  # of the conversations begin with a written request while there are any
    similar_share: float = 0.5  # of the others, with one that the model writes after some examples
    user_temperatures: tuple[float, ...] = (0.7, 0.8, 0.9, 1.0)
    answer_temperature: float = 0.7  # of the answers that are not greedy
    greedy_share: float = 0.6
    user_tokens: int = 160  # a user's turn that is longer is dropped
    answer_tokens: tuple[int, ...] = (128, 256, 256, 384)
    context_length: int = 2200  # of a whole conversation
    max_turns: int = 4
    another_turn: float = 0.22  # probability after each answer
    own_system_prompt: float = 0.1


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tokens that a dialogue waits for."""

    prompt: tuple[int, ...]
    temperature: float
    max_tokens: int
    seed: int
    is_answer: bool
    stop: tuple[str, ...] = ()


@dataclass
class Texts:
    """What dialogues share: answers to quote, and which user turns were there already."""

    prose: deque[str] = field(default_factory=lambda: deque(maxlen=2000))
    code: deque[str] = field(default_factory=lambda: deque(maxlen=500))
    seen: set[str] = field(default_factory=set)  # keys of first user's turns

    def is_new(self, text: str) -> bool:
        """Whether nobody asked this before, but for case and spaces; remembers it."""
        key = text_key(text)
        new = key not in self.seen
        self.seen.add(key)
        return new

    def keep(self, kind: str, answer: str) -> None:
        """Make `answer` one of the texts to quote, if it is fit for that."""
        if kind == "code":
            parts = answer.split("```")
            if len(parts) > 2 and 60 < len(parts[1]) < 1200:
                self.code.append(f"```{parts[1]}```")
        elif kind in ("chat", "question", "summary") and len(answer) > 200:
            self.prose.append(answer)


class DialogueWriter:
    """Turns random numbers into dialogues; the tokens come from whoever drives the generators."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        options: DialogueOptions,
        texts: Texts,
        written: Requests,
    ) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._options, self._texts, self._written = options, texts, written

    def write(self, rng: random.Random) -> Generator[Wanted, list[int], Dialogue | None]:
        """One dialogue: yields what it wants, gets the tokens; None if nothing came of it."""
        options = self._options
        written = None
        if rng.random() < options.written_share:
            written = self._written.draw(rng, self._texts.is_new)
        kind = written.kind if written else rng.choices([*KINDS], [*KINDS.values()])[0]
        similar = not written and rng.random() < options.similar_share
        examples = self._written.examples(rng, kind) if similar else []
        temperature = 0.0 if rng.random() < options.greedy_share else options.answer_temperature
        own_system = rng.random() < options.own_system_prompt
        messages = [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}] if own_system else []
        tokens: list[int] = []
        answers: list[Answer] = []
        asked = ""
        for turn in range(options.max_turns):
            if turn == 0 and written:
                text: str | None = written.prompt
            elif turn == 0 and examples:
                text = yield from self._similar(rng, examples)
            else:
                text = yield from self._user_turn(rng, kind if turn == 0 else "chat", messages)
            if text is None or (turn == 0 and not written and not self._texts.is_new(text)):
                break
            asked = asked or text
            messages.append({"role": "user", "content": text})
            prompt = self._tokenizer.encode(self._template.render(messages))
            room = options.context_length - len(prompt)
            limits = [limit for limit in options.answer_tokens if limit <= room]
            if prompt[: len(tokens)] != tokens or not limits:
                break  # too long, or the server would encode the earlier answers in another way
            output = yield Wanted(tuple(prompt), temperature, rng.choice(limits), rng.getrandbits(63), True)
            tokens = [*prompt, *output]
            answers.append(Answer(kind if turn == 0 else "multi-turn", len(prompt), len(tokens)))
            answer = self._tokenizer.decode(output)
            messages.append({"role": "assistant", "content": answer})
            self._texts.keep(kind, answer)
            if not self._ended(output) or rng.random() > options.another_turn:
                break
        if not answers:
            return None
        about = written.about if written else asked
        return Dialogue(kind, temperature, tuple(tokens), tuple(answers), asked, about)

    def _user_turn(
        self, rng: random.Random, kind: str, messages: Sequence[dict[str, str]]
    ) -> Generator[Wanted, list[int], str | None]:
        words = {name: rng.choice(choices) for name, choices in WORDS.items()}
        text = self._quotation(rng, kind)
        if text is not None:
            return rng.choice(WITH_TEXT[kind]).format(text=text, **words)
        start = rng.choice(STARTS.get(kind, ("",))).format(**words)
        rendered = self._template.render(
            [*messages, {"role": "user", "content": _MARK}], add_generation_prompt=False
        )
        prompt = self._tokenizer.encode(rendered.partition(_MARK)[0] + start)
        temperature = rng.choice(self._options.user_temperatures)
        limit = self._options.user_tokens
        if len(prompt) + limit > self._options.context_length:
            return None
        output = yield Wanted(tuple(prompt), temperature, limit, rng.getrandbits(63), False)
        if not self._ended(output):
            return None
        text = (start + self._tokenizer.decode(output, continuation=True)).strip()
        return text if len(text) > len(start) + 4 else None

    def _similar(
        self, rng: random.Random, examples: Sequence[str]
    ) -> Generator[Wanted, list[int], str | None]:
        """One more line of a list of requests: how people ask, about what the model thinks of."""
        lines = "".join(f"- {example}\n" for example in examples)
        prompt = self._tokenizer.encode(f"What people asked the assistant:\n{lines}-")
        limit, temperature = self._options.user_tokens, rng.choice(self._options.user_temperatures)
        if len(prompt) + limit > self._options.context_length:
            return None
        output = yield Wanted(tuple(prompt), temperature, limit, rng.getrandbits(63), False, ("\n",))
        line, ended, _ = self._tokenizer.decode(output, continuation=True).partition("\n")
        return line.strip() if ended and len(line) > _SHORTEST else None

    def _quotation(self, rng: random.Random, kind: str) -> str | None:
        """A text for this kind of turn, or None for a turn without one."""
        source = self._texts.code if kind == "code" else self._texts.prose
        share = {"long": 1.0, "rewriting": 0.65, "summary": 0.65}.get(kind, 0.3)
        if kind not in WITH_TEXT or len(source) < _MIN_POOL or rng.random() > share:
            return None
        if kind == "long":
            return "\n\n".join(rng.sample(source, rng.randint(2, 6)))
        text = rng.choice(source)
        if kind == "code":
            return text
        return _cut(text, rng.randint(80, 270) if kind == "translation" else rng.randint(180, 1300))

    def _ended(self, output: Sequence[int]) -> bool:
        return bool(output) and output[-1] in self._tokenizer.eos_token_ids


def _cut(text: str, length: int) -> str:
    """The sentences of `text` that fit into `length` characters, or the start of the first."""
    start = text[:length]
    end = max(start.rfind(". "), start.rfind(".\n"), start.rfind("\n\n"))
    return start[: end + 1].strip() if end > 40 else start.strip()
