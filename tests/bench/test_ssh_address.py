"""What a user writes becomes arguments of ssh, or is refused; it never becomes a part of a command line."""

from __future__ import annotations

import pytest

from kdcompress.bench.targets import parse_target
from kdcompress.errors import UserError


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("ssh://pi@pi5.local:2222", "pi", "pi5.local", 2222),
        ("ssh://board", None, "board", None),
        ("ssh://pi@[fe80::1%eth0]:22", "pi", "fe80::1%eth0", 22),
        ("ssh://10.0.0.7/", None, "10.0.0.7", None),
    ],
)
def test_an_address_becomes_arguments_and_never_a_line_for_a_shell(text, user, host, port):
    address = parse_target(text).address
    assert (address.user, address.host, address.port) == (user, host, port)
    command = address.command()
    assert command[-3:-1] == ["--", host]
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes"} <= set(command)
    assert command[-1].startswith("exec python3 -c ")


@pytest.mark.parametrize(
    "text",
    [
        "ssh://", "ssh://-oProxyCommand=id", "ssh://a b", "ssh://host;id", "ssh://$(id)@host", "ssh://-l@host",
        "ssh://host:0", "ssh://host:65536", "ssh://host:22:22", "ssh://host/path", "ssh://user:secret@host",
        "ssh://host\n", "ssh://a@b@c", "SSH://host", "ssh:host", "pack:x", "", "locl",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UserError, match="--target"):
        parse_target(text)


@pytest.mark.parametrize(
    "python", ["-c", "python3 -c 1", "python3;id", "$(id)", "~/python", "", "a\nb", "'x'"]
)
def test_what_is_no_interpreter_is_refused(python):
    with pytest.raises(UserError, match="--remote-python"):
        parse_target("ssh://board", remote_python=python)
