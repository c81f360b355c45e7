"""Machines that are network namespaces of this one, joined by a bridge. Needs root and `ip`."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from types import TracebackType
from typing import Self


class Network:
    """Context in which namespaces exist, each with an address of its own.

    Args:
        count: Number of namespaces.
    """

    def __init__(self, count: int) -> None:
        number = os.getpid() % 250
        self._hub = f"hub{os.getpid()}"
        self.names = [f"node{i}-{os.getpid()}" for i in range(count)]
        self.addresses = [f"10.77.{number}.{i + 1}" for i in range(count)]

    @staticmethod
    def possible() -> bool:
        """Return True if this process may create namespaces."""
        if shutil.which("ip") is None:
            return False
        name = f"try{os.getpid()}"
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
        if made:
            subprocess.run(["ip", "netns", "delete", name], check=True)
        return made

    def __enter__(self) -> Self:
        for name in (self._hub, *self.names):
            self._ip("netns", "add", name)
        self._ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
        self._ip("-n", self._hub, "link", "set", "bridge", "up")
        for i, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            self._ip("-n", self._hub, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            self._ip("-n", self._hub, "link", "set", f"port{i}", "master", "bridge", "up")
            self._ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                self._ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in (self._hub, *self.names):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def inside(self, node: int, *words: str) -> list[str]:
        """Command that runs on a node."""
        return ["ip", "netns", "exec", self.names[node], *words]

    def kill(self) -> None:
        """Kill all processes on the nodes."""
        for name in self.names:
            listed = subprocess.run(["ip", "netns", "pids", name], check=True, capture_output=True, text=True)
            for number in map(int, listed.stdout.split()):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)
