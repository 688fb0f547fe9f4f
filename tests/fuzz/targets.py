"""Everything that reads what strangers or torn files say, by name: what a fuzzer calls, and where it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz import answers, files, http_api, negotiation, streams
from tests.support.applications import daemon_application, device_application


@dataclass(frozen=True, slots=True)
class Target:
    """run(bytes) returns, or has found something; seeds(): inputs to begin with; end(): closes what is open."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    end: Callable[[], None] = lambda: None


def targets() -> dict[str, Target]:
    """All of them; those with a loop of their own begin anew with each call."""
    device_api, daemon_api = http_api.Api(device_application), http_api.Api(daemon_application)
    return {
        "server-negotiation": Target(negotiation.server, negotiation.server_seeds),
        "client-negotiation": Target(negotiation.client, negotiation.client_seeds),
        "device-api": Target(device_api, http_api.device_seeds, device_api.end),
        "daemon-api": Target(daemon_api, http_api.daemon_seeds, daemon_api.end),
        "daemon-answers": Target(answers.daemon_answers, answers.daemon_answers_seeds),
        "stream-messages": Target(streams.stream_messages, streams.stream_messages_seeds),
        "device-toml": Target(files.device_toml, files.device_toml_seeds),
        "daemon-toml": Target(files.daemon_toml, files.daemon_toml_seeds),
        "lease-book": Target(files.lease_book, files.lease_book_seeds),
        "peer-list": Target(files.peer_list, files.peer_list_seeds),
        "options-memory": Target(files.options_memory, files.options_memory_seeds),
        "state-file": Target(files.state_file, files.state_file_seeds),
    }
