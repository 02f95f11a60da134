"""Files and batches of a running server, with the openai package as the client, across a crash."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from openai.types import Batch

if TYPE_CHECKING:
    from tests.serving.batches.conftest import ServerProcess

NUM_LINES = 1_500
CHAT = "/v1/chat/completions"
LONG = {"max_tokens": 400, "ignore_eos": True}


def test_each_line_is_answered_once_in_spite_of_a_crash(
    start: Callable[..., ServerProcess], lines: SimpleNamespace
) -> None:
    server = start()
    requests = [lines.legacy(number) for number in range(NUM_LINES)]
    requests[100]["body"]["temperature"] = 7
    batch = server.submit(lines.jsonl(*requests), metadata={"job": "crash"})
    assert batch.status == "validating" and batch.metadata == {"job": "crash"}

    def in_the_middle(batch: Batch) -> bool:
        assert batch.request_counts is not None
        return batch.request_counts.completed > NUM_LINES // 8

    half = server.wait(batch, in_the_middle)
    server.end(signal.SIGKILL)
    assert half.status == "in_progress" and half.request_counts is not None
    server.start()
    done = server.wait(batch)
    assert done.status == "completed" and done.request_counts is not None
    assert done.request_counts.to_dict() == {"total": NUM_LINES, "completed": NUM_LINES - 1, "failed": 1}
    generated = server.metric('batch_lines_total{state="completed"}')
    assert 0 < generated <= NUM_LINES - half.request_counts.completed, "finished lines were run again"
    answers = server.output(done.output_file_id)
    good = [request["custom_id"] for request in requests if request is not requests[100]]
    assert [answer["custom_id"] for answer in answers] == good
    assert all(answer["response"]["status_code"] == 200 and answer["error"] is None for answer in answers)
    (bad,) = server.output(done.error_file_id)
    assert bad["custom_id"] == "line-100" and bad["response"]["status_code"] == 400
    assert bad["response"]["body"]["error"]["param"] == "temperature"
    live = server.client.completions.create(**requests[7]["body"])
    assert answers[7]["response"]["body"]["choices"][0]["text"] == live.choices[0].text


def test_a_stopped_server_leaves_what_the_next_one_resumes(
    start: Callable[..., ServerProcess], lines: SimpleNamespace
) -> None:
    server = start()
    batch = server.submit(lines.jsonl(*(lines.chat(number, max_tokens=40) for number in range(40))), CHAT)
    server.wait(batch, lambda batch: bool(batch.request_counts and batch.request_counts.completed))
    assert server.end(signal.SIGTERM) == 0
    server.start()
    done = server.wait(batch)
    assert done.status == "completed"
    assert [answer["custom_id"] for answer in server.output(done.output_file_id)] == [
        f"line-{number}" for number in range(40)
    ]


def test_a_batch_of_embeddings(server: ServerProcess) -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"input": ["the user", "the city"]},
    }
    done = server.wait(server.submit(json.dumps(line).encode(), "/v1/embeddings"))
    (answer,) = server.output(done.output_file_id)
    assert [item["index"] for item in answer["response"]["body"]["data"]] == [0, 1]


def test_cancelling_stops_what_runs_and_keeps_what_is_answered(
    server: ServerProcess, lines: SimpleNamespace
) -> None:
    requests = [lines.legacy(0), *(lines.legacy(number, **LONG) for number in range(1, 80))]
    batch = server.submit(lines.jsonl(*requests))
    server.wait(batch, lambda batch: bool(batch.request_counts and batch.request_counts.completed))
    cancelled = server.client.batches.cancel(batch.id)
    assert cancelled.status == "cancelling" and cancelled.cancelling_at
    done = server.wait(batch)
    assert done.status == "cancelled" and done.cancelled_at and done.request_counts
    assert server.metric("num_requests_running") == 0
    answers, errors = server.output(done.output_file_id), server.output(done.error_file_id)
    assert answers[0]["custom_id"] == "line-0" and len(answers) == done.request_counts.completed < 80
    assert len({item["custom_id"] for item in answers + errors}) == 80 == len(answers + errors)
    assert {item["error"]["code"] for item in errors} == {"batch_cancelled"}
    with pytest.raises(openai.BadRequestError, match="'cancelled'"):
        server.client.batches.cancel(batch.id)


def test_a_batch_ends_with_its_window(server: ServerProcess, lines: SimpleNamespace) -> None:
    content = lines.jsonl(*(lines.legacy(number, **LONG, n=16) for number in range(60)))
    done = server.wait(server.submit(content, window="2s"))
    assert done.status == "expired" and done.expired_at and done.request_counts
    errors = server.output(done.error_file_id)
    assert len(errors) == 60 - done.request_counts.completed > 0
    assert errors[-1]["error"]["code"] == "batch_expired" and errors[-1]["response"] is None


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        ({"custom_id": "line-0"}, "duplicate_custom_id", "custom_id"),
        ({"custom_id": 3}, "invalid_custom_id", "custom_id"),
        ({"url": CHAT}, "invalid_url", "url"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"body": []}, "invalid_request", "body"),
        ({"body": {"stream": True}}, "invalid_request", "body.stream"),
        ({"body": {"priority": -1}}, "invalid_request", "body.priority"),
        ({"extra": 1}, "unknown_parameter", "extra"),
    ],
)
def test_wrong_lines_fail_the_batch(
    server: ServerProcess, lines: SimpleNamespace, change: Any, code: str, param: str | None
) -> None:
    second = change if isinstance(change, bytes) else lines.jsonl(lines.legacy(1) | change).strip()
    done = server.wait(server.submit(lines.jsonl(lines.legacy(0)) + b"\n" + second + b"\r\n"))
    assert done.status == "failed" and done.failed_at and not done.output_file_id
    assert done.errors is not None and done.errors.data is not None
    (error,) = done.errors.data
    assert (error.code, error.param, error.line) == (code, param, 3)


def test_a_file_without_lines(server: ServerProcess) -> None:
    done = server.wait(server.submit(b"\n\n"))
    assert done.errors and done.errors.data and done.errors.data[0].code == "empty_file"


def test_lists_are_paged(server: ServerProcess, lines: SimpleNamespace) -> None:
    with server.client_of("two") as client:
        content = lines.jsonl(lines.legacy(0))
        files = [client.files.create(file=(f"{i}.jsonl", content), purpose="batch") for i in range(3)]
        assert [file.id for file in client.files.list(limit=2)] == [file.id for file in files[::-1]]
        assert [file.id for file in client.files.list(order="asc", after=files[0].id)] == [
            files[1].id,
            files[2].id,
        ]
        assert not client.files.list(purpose="batch_output").data
        batches = [
            client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")  # type: ignore[arg-type]
            for file in files
        ]
        page = client.batches.list(limit=2)
        assert [batch.id for batch in page.data] == [batches[2].id, batches[1].id] and page.has_more
        assert [batch.id for batch in client.batches.list(limit=1)] == [batch.id for batch in batches[::-1]]
        with pytest.raises(openai.BadRequestError) as wrong:
            client.batches.list(limit=101)
        assert wrong.value.param == "limit"
        with pytest.raises(openai.BadRequestError, match="after"):
            client.batches.list(after="batch_unknown")


def test_other_keys_see_nothing(server: ServerProcess, lines: SimpleNamespace) -> None:
    batch = server.wait(server.submit(lines.jsonl(lines.legacy(0))))
    with server.client_of("two") as other:
        for call in (
            lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
            lambda: other.files.retrieve(batch.input_file_id),
            lambda: other.files.content(batch.output_file_id or ""),
            lambda: other.files.delete(batch.input_file_id),
            lambda: other.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/completions", completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        assert batch.id not in [item.id for item in other.batches.list()]
    with pytest.raises(openai.AuthenticationError), server.client_of("three") as stranger:
        stranger.files.list()


def test_files_are_stored_and_deleted(server: ServerProcess, lines: SimpleNamespace) -> None:
    content = b"".join(lines.jsonl(lines.legacy(number)) for number in range(20_000))  # more than a megabyte
    file = server.client.files.create(
        file=("many lines.jsonl", content),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (file.bytes, file.filename, file.status) == (len(content), "many lines.jsonl", "processed")
    assert file.expires_at == file.created_at + 3600
    assert server.client.files.retrieve(file.id) == file
    assert server.client.files.content(file.id).content == content
    batch = server.client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    with pytest.raises(openai.BadRequestError) as in_use:
        server.client.files.delete(file.id)
    assert in_use.value.code == "file_in_use"
    server.client.batches.cancel(batch.id)
    server.wait(batch)
    assert server.client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        server.client.files.content(file.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "vision"}, "purpose"),
        ({"purpose": "batch", "color": "red"}, "color"),
        ({"purpose": "batch", "expires_after[seconds]": "9999"}, "expires_after.anchor"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "5"},
            "expires_after.seconds",
        ),
    ],
)
def test_wrong_forms_are_refused(server: ServerProcess, fields: dict[str, str], param: str) -> None:
    headers = {"x-api-key": "one"}
    answer = httpx.post(server.url + "/v1/files", data=fields, files={"file": b"x"}, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    answer = httpx.post(server.url + "/v1/files", data={"purpose": "batch"}, headers=headers)
    assert answer.status_code == 400
    headers["content-type"] = "multipart/form-data; boundary=x"
    answer = httpx.post(server.url + "/v1/files", content=b"no form", headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["code"] in {
        "invalid_form",
        "missing_required_parameter",
    }


def test_announced_size_is_refused_at_once(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=20)
    headers = {
        "x-api-key": "one",
        "content-type": "multipart/form-data; boundary=x",
        "content-length": 1 << 40,
    }
    connection.putrequest("POST", "/v1/files")
    for name, value in headers.items():
        connection.putheader(name, str(value))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and b"request_too_large" in answer.read()
    connection.close()


def test_a_batch_is_made_of_a_batch_file(server: ServerProcess, lines: SimpleNamespace) -> None:
    done = server.wait(server.submit(lines.jsonl(lines.legacy(0))))
    assert done.output_file_id is not None
    create: Any = server.client.batches.create
    fields = {"input_file_id": done.input_file_id, "endpoint": "/v1/completions", "completion_window": "1h"}
    for wrong in (
        {"input_file_id": done.output_file_id},
        {"endpoint": "/v1/images"},
        {"completion_window": "31d"},
        {"completion_window": "soon"},
        {"metadata": {"a": 1}},
    ):
        with pytest.raises(openai.BadRequestError) as error:
            create(**fields | wrong)
        assert (error.value.param or "").partition(".")[0] == next(iter(wrong))


def test_the_data_folder_belongs_to_one_server(
    start: Callable[..., ServerProcess], lines: SimpleNamespace
) -> None:
    first = start()
    first.submit(lines.jsonl(lines.legacy(0)))
    second = start()
    with pytest.raises(openai.InternalServerError, match="another server uses it"):
        second.client.files.list()
    assert second.client.completions.create(**lines.legacy(0)["body"]).choices
    first.end(signal.SIGTERM)
    deadline = time.monotonic() + 60
    while not second.client.batches.list().data:
        assert time.monotonic() < deadline
