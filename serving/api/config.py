"""What the server may be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from flashlet.serving.batches.config import BatchConfig
from flashlet.serving.responses.config import ResponseConfig


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where to listen, under which names to serve, and the limits of one request."""

    model_names: tuple[str, ...]  # at least one; the first is the default and the one that answers report
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    api_keys: tuple[str, ...] = ()  # empty: no key is asked for
    cors_origins: tuple[str, ...] = ()  # empty: no CORS headers; "*" allows any
    drain_timeout: float = 30.0  # seconds that running requests get after SIGTERM
    max_body_bytes: int = 8 << 20
    retry_grace: float = 5.0  # seconds for which an answer waits for the retry of a client that has gone
    resume_seconds: float = 60.0  # the same for a stream that can be resumed
    answer_cache_bytes: int = 0  # 0: no answer cache
    batches: BatchConfig | None = None  # None: no files and no batches
    responses: ResponseConfig = field(default_factory=ResponseConfig)
    log_level: str = "warning"  # of uvicorn
