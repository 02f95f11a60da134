"""The HTTP benchmark against toy servers whose behaviour is known."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from comparison import Comparison
from prompts import PromptMaker
from scenarios import Load, longest_stall, percentile
from stream_client import Answer, Endpoint, complete

from flashlet.model.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]


class ToyServer:
    """Streams numbered words, two milliseconds each; after `pause_at` words it sleeps once for 150 ms."""

    def __init__(self, pause_at: int = -1, status: int = 200) -> None:
        self.pause_at = pause_at
        self.status = status
        self.prompts: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
            await writer.drain()
        except ConnectionError:
            pass  # the client left
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if head.startswith("get"):
            body = b'{"data": [{"id": "toy"}]}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        request = json.loads(await reader.readexactly(length))
        self.prompts.append(request["prompt"])
        writer.write(b"HTTP/1.1 %d Status\r\nTransfer-Encoding: chunked\r\n\r\n" % self.status)
        if self.status == 200:
            await self._stream(writer, request["max_tokens"])

    async def _stream(self, writer: asyncio.StreamWriter, num_tokens: int) -> None:
        for number in range(num_tokens):
            await asyncio.sleep(0.15 if number == self.pause_at else 0.002)
            self._event(writer, {"choices": [{"text": f"word{number} "}], "usage": None})
            await writer.drain()
        usage = {"prompt_tokens": 5, "completion_tokens": num_tokens}
        self._event(writer, {"choices": [{"text": "", "finish_reason": "length"}]})
        self._event(writer, {"choices": [], "usage": usage})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    @staticmethod
    def _event(writer: asyncio.StreamWriter, event: dict[str, object]) -> None:
        data = b"data: " + json.dumps(event).encode() + b"\n\n"
        half = len(data) // 2  # in two chunks, as a server may
        for part in (data[:half], data[half:]):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))


@contextmanager
def running(server: ToyServer) -> Iterator[Endpoint]:
    """The server in a thread of its own."""
    loop = asyncio.new_event_loop()
    listener = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "toy")
    finally:
        loop.call_soon_threadsafe(listener.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.fixture(scope="module")
def prompts(tiny_model_path: Path) -> PromptMaker:
    return PromptMaker(load_tokenizer(tiny_model_path))


def test_client_sees_text_times_and_usage() -> None:
    with running(ToyServer(pause_at=4)) as endpoint:
        answer = asyncio.run(complete(endpoint, "hello", 6)).answer()
    assert answer.text == "word0 word1 word2 word3 word4 word5 "
    assert (answer.prompt_tokens, answer.completion_tokens) == (5, 6)
    assert len(answer.gaps) == 5
    assert answer.gaps[3] >= 0.14
    assert answer.ttft >= 0.002
    assert answer.sent < answer.text_times[0] < answer.text_times[-1] <= answer.finished


def test_client_refuses_what_is_no_completion() -> None:
    with running(ToyServer(status=404)) as endpoint:
        recording = asyncio.run(complete(endpoint, "hello", 6))
    with pytest.raises(RuntimeError, match="expected a streamed completion, got: HTTP/1.1 404"):
        recording.answer()


def test_load_sends_a_new_prompt_each_time(prompts: PromptMaker) -> None:
    server = ToyServer(pause_at=4)
    with running(server) as endpoint:
        metrics = asyncio.run(Load(3, 20, answers_per_client=2, answer_tokens=8).run(endpoint, prompts))
    assert len(set(server.prompts)) == 6
    assert metrics["gap p99, ms"] >= 140
    assert 0 < metrics["tokens/s"] < 3 * 8 / 0.15  # three answers of 8 tokens at once take at least the pause


def test_prompts_have_the_length_and_no_common_start(tiny_model_path: Path, prompts: PromptMaker) -> None:
    texts = [prompts.prompt(50) for _ in range(5)]
    assert len({text[:12] for text in texts}) == 5
    assert all(abs(len(load_tokenizer(tiny_model_path).encode(text)) - 50) <= 2 for text in texts)


def test_longest_stall_counts_what_overlaps_the_interval() -> None:
    answer = Answer(0, (1.0, 3.0, 3.5, 4.5, 9.0), 9.0, "", 0, 0)
    assert longest_stall(answer, begin=0.5, end=4.6) == 2.0
    assert longest_stall(answer, begin=2.0, end=4.6) == 2.0  # began before, ended within
    assert longest_stall(answer, begin=3.2, end=4.6) == 1.0
    assert longest_stall(answer, begin=3.2, end=7.0) == 2.5  # silent to the end


def test_percentile() -> None:
    assert percentile(range(1, 101), 99) == 99
    assert percentile([5, 1], 50) == 1
    assert percentile([7], 99) == 7


def test_advantage_is_better_whichever_way_is_better() -> None:
    comparison = Comparison(("a", "b"))
    for ours, theirs in ((10, 5), (20, 5), (12, 4)):
        comparison.add("load", "a", {"tokens/s": ours, "gap, ms": ours})
        comparison.add("load", "b", {"tokens/s": theirs, "gap, ms": theirs})
    assert comparison.advantage("load", "tokens/s", "b") == 3
    assert comparison.advantage("load", "gap, ms", "b") == pytest.approx(1 / 3)
    assert "| load | tokens/s | 12.0 | 5.00 | 3.00x |" in comparison.markdown()


def test_what_took_no_time_has_no_ratio() -> None:
    """Tokens that come together have no gap between them."""
    comparison = Comparison(("a", "b"))
    comparison.add("load", "a", {"gap, ms": 0.0})
    comparison.add("load", "b", {"gap, ms": 3.0})
    assert comparison.advantage("load", "gap, ms", "b") is None
    assert "| gap, ms | 0.00 | 3.00 |  |" in comparison.markdown()


def test_whole_run_against_two_servers(tiny_model_path: Path, tmp_path: Path) -> None:
    with running(ToyServer()) as ours, running(ToyServer(pause_at=20)) as theirs:
        command = [sys.executable, ROOT / "benchmarks" / "compare.py", tiny_model_path]
        command += [
            "--url",
            f"http://127.0.0.1:{ours.port}",
            "--other",
            f"toy=http://127.0.0.1:{theirs.port}",
        ]
        command += ["--clients", "2", "--rounds", "1", "--output", tmp_path]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
    result = json.loads((tmp_path / "compare.json").read_text())
    assert result["contenders"] == ["flashlet", "toy"]
    assert {row["scenario"] for row in result["results"]} == {
        "2 clients, 30-token prompts",
        "2 clients, 1,500-token prompts",
        "one client alone",
        "4 prompts of 1,500 tokens during 12 streams",
    }
    gaps = next(row for row in result["results"] if row["metric"] == "gap p99, ms")
    assert gaps["median"]["toy"] >= 140
    assert str(tmp_path) not in result["environment"]["command"]
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "| flashlet / toy |" in (tmp_path / "compare.md").read_text()
