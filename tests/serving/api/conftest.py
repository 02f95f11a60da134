"""A real engine and a real tokenizer behind the real HTTP application; only the model is a toy."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from flashlet.model.chat_template import ChatTemplate
from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.fingerprint import Fingerprint
from flashlet.model.sampling import SampleRequest, TokenLogprobs
from flashlet.model.step import SequenceSlice, SliceOutput, Step
from flashlet.model.tokenizer import Tokenizer, load_tokenizer
from flashlet.serving.api.app import build_app
from flashlet.serving.api.config import ServerConfig
from flashlet.serving.api.protocol import LimitedProtocol
from flashlet.serving.api.service import LoadedModel, Service
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.engine_loop import EngineLoop

CONTEXT = 512
BLOCK_SIZE = 8
FIRST_BYTES = [*b"abcdefg  ", 0xC3, 0xE6, 0xF0]
NEXT_BYTE = {0xC3: 0xA9, 0xE6: 0x97, 0x97: 0xA5, 0xF0: 0x9F, 0x9F: 0x99, 0x99: 0x82}  # é 日 🙂, byte by byte


class ScriptedExecutor:
    """Writes letters, é, 日 and 🙂 one byte per token, chosen by a hash of the context and the seed."""

    name = "scripted"
    block_size = BLOCK_SIZE

    def __init__(self, tokenizer: Tokenizer, num_blocks: int = 512, context_length: int = CONTEXT) -> None:
        self.num_blocks = num_blocks
        self.max_draft_tokens = 0
        self.delay = 0.0  # seconds per step
        self.failure: Exception | None = None  # raised by the next step
        self.script: str | None = None  # what to write as far as grammars allow it, then EOS
        self.config = ModelConfig(
            architecture="llama", vocab_size=tokenizer.vocab_size, hidden_size=8, intermediate_size=8,
            num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, context_length=context_length,
            rms_norm_eps=1e-5, rope=RopeConfig(), tie_word_embeddings=True,
            eos_token_ids=tokenizer.eos_token_ids,
        )  # fmt: skip
        self._bytes = [tokenizer.token_bytes(index) for index in range(tokenizer.vocab_size)]
        self._ids = {data[0]: index for index, data in enumerate(self._bytes) if len(data) == 1}
        self._slots = [-1] * (num_blocks * BLOCK_SIZE)

    def execute(self, step: Step) -> Sequence[SliceOutput]:
        time.sleep(self.delay)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        for piece in step.slices:
            if piece.copied_block is not None:
                source = piece.copied_block * BLOCK_SIZE
                target = piece.block_table[piece.start // BLOCK_SIZE] * BLOCK_SIZE
                self._slots[target : target + BLOCK_SIZE] = self._slots[source : source + BLOCK_SIZE]
        return [self._run(piece) for piece in step.slices]

    def close(self) -> None:
        self._slots.clear()

    def _run(self, piece: SequenceSlice) -> SliceOutput:
        def slot(position: int) -> int:
            return piece.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE

        for position, token_id in enumerate([*piece.token_ids, *piece.proposed], piece.start):
            self._slots[slot(position)] = token_id
        context = [self._slots[slot(position)] for position in range(piece.start + len(piece.token_ids))]
        targets = tuple(
            self._score(target, piece.num_top_logprobs, context[: piece.start + i + 1])
            for i, target in enumerate(piece.logprob_targets)
        )
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        for i, sample in enumerate(piece.samples):
            prefix = [*context, *tokens]
            tokens.append(self._choose(prefix, sample))
            if sample.params.logprobs is not None:
                logprobs.append(self._score(tokens[-1], sample.params.logprobs, prefix))
            if [*piece.proposed[i : i + 1]] != tokens[-1:]:
                break
        return SliceOutput(tuple(tokens), tuple(logprobs), targets, features=self._features(piece, context))

    def _features(self, piece: SequenceSlice, context: list[int]) -> NDArray[np.float32] | None:
        """Hidden states that are a hash of the context."""
        if not piece.features:
            return None
        assert piece.features == (self.config.num_layers + 1,)
        ends = range(piece.start + 1, len(context) + 1)
        rows = [np.random.default_rng(context[:end]).normal(size=self.config.hidden_size) for end in ends]
        return np.array(rows, np.float32)[:, None]

    def _choose(self, context: list[int], sample: SampleRequest) -> int:
        params = sample.params
        if self.script is not None:
            return self._spell(context, sample)
        if sample.allowed is not None:
            return self._choose_allowed(context, sample)
        if params.logit_bias:
            return max(params.logit_bias, key=lambda pair: pair[1])[0]
        last = self._bytes[context[-1]]
        if last and last[-1] in NEXT_BYTE:
            return self._ids[NEXT_BYTE[last[-1]]]
        key = (context, 0 if params.temperature == 0.0 else params.seed)
        number = _hash(key)
        eos = self.config.eos_token_ids[0]
        if number % 41 == 0 and eos not in sample.suppressed:
            return eos
        return self._ids[FIRST_BYTES[number % len(FIRST_BYTES)]]

    def _spell(self, context: list[int], sample: SampleRequest) -> int:
        """The script's byte after those written in the assistant's turn, or another allowed token."""
        assert self.script is not None
        written = b"".join(self._bytes[token_id] for token_id in context).rpartition(b"assistant\n")[2]
        script = self.script.encode()
        done = len(written) >= len(script)
        wanted = self.config.eos_token_ids[0] if done else self._ids[script[len(written)]]
        if sample.allowed is None or sample.allowed[wanted // 32] >> wanted % 32 & 1:
            return wanted
        return next(i for i in range(len(self._bytes)) if sample.allowed[i // 32] >> i % 32 & 1)

    def _choose_allowed(self, context: list[int], sample: SampleRequest) -> int:
        """Any allowed token, mostly one that closes what is open, so that answers end."""
        assert sample.allowed is not None
        bits = np.unpackbits(sample.allowed.view(np.uint8), bitorder="little")
        allowed = [int(index) for index in np.flatnonzero(bits)]
        number = _hash((context, 0 if sample.params.temperature == 0.0 else sample.params.seed))
        eos = self.config.eos_token_ids[0]
        closing = [index for index in allowed if index == eos or self._bytes[index][:1] in b'"]}']
        choices = closing if closing and number % 3 else allowed
        return choices[number // 3 % len(choices)]

    def _score(self, token_id: int, num_top: int, context: list[int]) -> TokenLogprobs:
        """The chosen token is second best whenever there are alternatives."""
        others = [index for index in range(200, 200 + num_top) if index != token_id]
        logprob = -1.0 - _hash(context) % 100 / 100
        ranked = [(others[0], -0.5), (token_id, logprob)] if num_top > 1 else [(token_id, logprob)]
        ranked += [(index, -4.0 - rank) for rank, index in enumerate(others[1:])]
        return TokenLogprobs(token_id, logprob, tuple(ranked[:num_top]))


def _hash(key: object) -> int:
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=6).digest(), "big")


@dataclass
class Server:
    """A server that listens on an ephemeral port."""

    service: Service
    executor: ScriptedExecutor
    url: str
    client: httpx.Client

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def stream(self, path: str, **body: Any) -> list[str]:
        """The `data:` payloads of a streamed answer, [DONE] included."""
        response = self.post(path, stream=True, **body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response.text.split("\n\n")
        assert events.pop() == ""
        return [event.removeprefix("data: ") for event in events if not event.startswith(":")]

    def wait_idle(self) -> None:
        """Wait until no sequence runs or waits."""
        engine = self.service.model.engine_loop.engine  # type: ignore[union-attr]
        deadline = time.monotonic() + 60
        while engine.stats().running or engine.stats().waiting:
            assert time.monotonic() < deadline, engine.stats()
            time.sleep(0.01)
        assert engine.stats().kv_usage == 0.0


@pytest.fixture(scope="session")
def tokenizer(tiny_model_path: Path) -> Tokenizer:
    return load_tokenizer(tiny_model_path)


@pytest.fixture(scope="session")
def start_server(tokenizer: Tokenizer) -> Iterator[Callable[..., Server]]:
    """Starts servers; all stop at the end of the session."""
    clients: list[httpx.Client] = []
    running: list[tuple[uvicorn.Server, threading.Thread, EngineLoop]] = []

    def start(
        engine: dict[str, Any] | None = None,
        load: bool = True,
        context_length: int = CONTEXT,
        template: str | None = None,
        **config: Any,
    ) -> Server:
        own_tokenizer = copy.copy(tokenizer)
        own_tokenizer.chat_template = template or tokenizer.chat_template
        executor = ScriptedExecutor(tokenizer, max(512, context_length // 4), context_length)
        engine_loop = EngineLoop(Engine(executor, tokenizer, EngineConfig(**(engine or {}))))
        engine_loop.start()
        service = Service(ServerConfig(model_names=("toy", "alias/toy"), **config))
        if load:
            service.model = loaded_model(own_tokenizer, engine_loop, executor)
        http = uvicorn.Server(
            uvicorn.Config(
                build_app(service),
                port=0,
                http=LimitedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                timeout_graceful_shutdown=1,
            )
        )
        thread = threading.Thread(target=lambda: asyncio.run(http.serve()), daemon=True)
        thread.start()
        while not http.started:
            time.sleep(0.005)
        running.append((http, thread, engine_loop))
        url = f"http://127.0.0.1:{http.servers[0].sockets[0].getsockname()[1]}"
        clients.append(httpx.Client(base_url=url, timeout=120))
        return Server(service, executor, url, clients[-1])

    yield start
    for client in clients:
        client.close()
    for http, _, _ in running:
        http.should_exit = True
    for _, thread, engine_loop in running:
        engine_loop.stop()
        thread.join(60)
        assert not thread.is_alive()


def loaded_model(tokenizer: Tokenizer, engine_loop: EngineLoop, executor: ScriptedExecutor) -> LoadedModel:
    assert tokenizer.chat_template is not None
    template = ChatTemplate(
        tokenizer.chat_template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token
    )
    fingerprint = Fingerprint("toy weights", "no formats", "scripted")
    return LoadedModel("toy", engine_loop, tokenizer, template, executor.config, fingerprint)


@pytest.fixture(scope="session")
def shared_server(start_server: Callable[..., Server]) -> Server:
    return start_server()


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The shared server; afterwards it must be idle again, with all blocks free."""
    shared_server.executor.delay = 0.0
    yield shared_server
    shared_server.executor.delay = 0.0
    shared_server.executor.script = None
    shared_server.wait_idle()
