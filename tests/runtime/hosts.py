"""Two hosts on one machine, started by the command lines of docs/training.md."""

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.train_net import REPOSITORY, Command, end

_PAGE = (REPOSITORY / "docs/training.md").read_text()
_BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", _PAGE, flags=re.DOTALL | re.MULTILINE)
_COMMANDS = "\n".join(text for language, text in _BLOCKS if not language)
_LINES = _COMMANDS.replace("\\\n", " ").splitlines()
BY_LAUNCHER = [line for line in _LINES if "--num-machines 2" in line]
BY_TORCHRUN = [line for line in _LINES if "--nnodes 2" in line] * 2


class Network(NamedTuple):
    """address: of host 0; prefixes: of a command that runs on either host; interface: its name."""

    address: str
    prefixes: list[tuple[str, ...]]
    interface: str


LOOPBACK = Network("127.0.0.1", [(), ()], "lo")


def run_hosts(
    train_net: Command,
    lines: list[str],
    workers: int,
    output: Path,
    network: Network,
    **keys,
) -> Path:
    """Run the page's line for each host; returns the output folder of host 0.

    Args:
        workers: per host.
        output: of a folder for each host: they share no disk.
        keys: as in `Command.arguments`.
    """
    address, prefixes, interface = network
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    hosts = []
    for node, (line, prefix) in enumerate(zip(lines, prefixes, strict=True)):
        for written, meant in (
            ("HOST0", address),
            ("29500", str(port)),
            ("NODE", str(node)),
            ("--num-gpus 8", f"--num-gpus {workers}"),
            ("--nproc-per-node 8", f"--nproc-per-node {workers}"),
        ):
            line = line.replace(written, meant)
        program, separator, flags = line.partition("tools/train_net.py")
        assert separator and flags.count("--config-file FILE") == 1, line
        flags = shlex.split(flags.replace("--config-file FILE", ""))
        launcher = shlex.split(program.replace("torchrun", "-m torch.distributed.run"))
        arguments = train_net.arguments(output / f"host{node}", *flags, **keys)
        environment = {"GLOO_SOCKET_IFNAME": interface}
        hosts.append(train_net.start(arguments, tuple(launcher), prefix, environment))
    printed = [end(host, seconds=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(p[-3000:] for p in printed)
    return output / "host0"


@contextlib.contextmanager
def two_namespaces() -> Iterator[Network]:
    """Two network namespaces joined by a virtual cable; skips the test where they cannot be."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command ip (iproute2)")
    names = [f"bn-detect-{os.getpid()}-{node}" for node in range(2)]
    first, second = names
    commands = [
        *(f"netns add {name}" for name in names),
        f"link add eth0 netns {first} type veth peer name eth0 netns {second}",
        *(f"-n {name} addr add 10.0.0.{1 + i}/24 dev eth0" for i, name in enumerate(names)),
        *(f"-n {name} link set {device} up" for name in names for device in ("lo", "eth0")),
    ]
    try:
        for command in commands:
            done = _ip(command)
            if done.returncode:
                pytest.skip(f"no network namespaces here: ip {command}: {done.stderr.strip()}")
        yield Network("10.0.0.1", [("ip", "netns", "exec", name) for name in names], "eth0")
    finally:
        for name in names:
            _ip(f"netns del {name}")


def _ip(command: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *command.split()], capture_output=True, text=True)
