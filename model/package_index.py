"""Wheels from the Python package index that pip is configured for on this machine."""

from __future__ import annotations

import ast
import os
import ssl
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

from flashlet.model.download import public
from flashlet.model.errors import DownloadError

if TYPE_CHECKING:
    import httpx

DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_SECONDS = 60.0
# PEP 691 as JSON where the index has it, PEP 503 as HTML everywhere else.
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """The part of pip's configuration that says where packages come from and how to get there."""

    index_urls: tuple[str, ...] = (DEFAULT_INDEX,)
    certificates: str | None = None  # file of CA certificates
    proxy: str | None = None

    @classmethod
    def from_pip(cls) -> IndexOptions:
        """What pip on this machine would use: its files, then PIP_* variables."""
        options = _pip_options()
        indexes = [options.get("index-url", DEFAULT_INDEX), *options.get("extra-index-url", "").split()]
        return cls(
            index_urls=tuple(url.rstrip("/") for url in indexes if urlsplit(url).scheme in ("http", "https")),
            certificates=options.get("cert"),
            proxy=options.get("proxy"),
        )

    def client(self) -> httpx.Client:
        """HTTP client with these settings; environment proxies count as usual."""
        import httpx

        try:
            context = ssl.create_default_context(cafile=self.certificates) if self.certificates else True
        except OSError as error:
            raise DownloadError(f"pip's option cert: {self.certificates}: {error}") from error
        return httpx.Client(verify=context, proxy=self.proxy, timeout=TIMEOUT_SECONDS, follow_redirects=True)


def find_wheel(client: httpx.Client, options: IndexOptions, package: str, filename: str) -> str:
    """URL of the file `filename` of `package`; raises DownloadError naming every index that was asked."""
    import httpx

    problems: list[str] = []
    for index in options.index_urls:
        page = f"{index}/{package}/"
        try:
            response = client.get(page, headers={"Accept": _ACCEPT})
            response.raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else error
            problems.append(f"{public(page)}: {status or type(error).__name__}")
            continue
        link = _links(response).get(filename)
        if link:
            return _with_credentials(link, str(response.url))
        problems.append(f"{public(page)}: no {filename}")
    raise DownloadError(f"{filename} not found; asked " + ("; ".join(problems) or "no index"))


def _pip_options() -> dict[str, str]:
    """pip's configuration without section names; a variable wins over [download] over [global]."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:  # an environment without pip
        prefix = "PIP_"
        return {
            name.removeprefix(prefix).lower().replace("_", "-"): value
            for name, value in os.environ.items()
            if name.startswith(prefix)
        }
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in found.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in sections:
            sections[section][name] = ast.literal_eval(value)
    return sections["global"] | sections["download"] | sections[":env:"]


def _links(response: httpx.Response) -> dict[str, str]:
    """Files on an index page, URL by name."""
    base = str(response.url)
    if "json" in response.headers.get("Content-Type", ""):
        try:
            return {file["filename"]: urljoin(base, file["url"]) for file in response.json()["files"]}
        except (ValueError, LookupError, TypeError) as error:
            raise DownloadError(f"{public(base)}: expected a PEP 691 project page, found: {error}") from error
    parser = _LinkParser()
    parser.feed(response.text)
    return {unquote(urlsplit(link).path.rpartition("/")[2]): urljoin(base, link) for link in parser.links}


def _with_credentials(link: str, page: str) -> str:
    """`link` with the user name and password of its index, if it is on the same host and has none."""
    import httpx

    link_url, page_url = httpx.URL(link), httpx.URL(page)
    if link_url.netloc == page_url.netloc and not link_url.userinfo:
        return str(link_url.copy_with(userinfo=page_url.userinfo))
    return link


class _LinkParser(HTMLParser):
    """Collects the targets of all links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One more link, without its #sha256 fragment."""
        target = dict(attrs).get("href")
        if tag == "a" and target:
            self.links.append(target.partition("#")[0])
