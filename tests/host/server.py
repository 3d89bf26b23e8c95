"""A real ComfyUI server in a process of its own, and a small client for it: HTTP plus its WebSocket.

with ComfyServer(host_path, base) as server:
    result = server.run(graph)              # graph: the API form, {node id: {"class_type", "inputs"}}
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import websocket

PACK_ROOT = Path(__file__).resolve().parents[2]
PACK_NAME = "ComfyUI-ZImage"
LAUNCHER = Path(__file__).with_name("launch.py")
TEST_PACKS = Path(__file__).with_name("packs")  # extensions for tests only
# Binary WebSocket messages begin with a big-endian kind; then, for pictures, a format (1 JPEG, 2 PNG), and
# for texts the length of the node's id, and the id.
PREVIEW_IMAGE, NODE_TEXT = 1, 3


class ServerFailed(RuntimeError):
    """The server did not start, died, or answered nothing in time."""


@dataclass
class Result:
    """What one graph did: every message in order, and what the server remembers of it."""

    prompt_id: str = ""
    events: list[dict] = field(default_factory=list)  # {"type", "data"} as received
    previews: list[bytes] = field(default_factory=list)  # encoded pictures
    texts: list[str] = field(default_factory=list)  # written under nodes
    errors: list[dict] = field(default_factory=list)  # {"node", "class_type", "type", "message"}
    history: dict = field(default_factory=dict)
    seconds: float = 0.0

    def of_type(self, kind: str) -> list[dict]:
        return [event["data"] for event in self.events if event["type"] == kind]

    @property
    def ok(self) -> bool:
        return bool(self.of_type("execution_success"))

    @property
    def interrupted(self) -> bool:
        return bool(self.of_type("execution_interrupted"))

    @property
    def cached(self) -> set[str]:
        return {node for data in self.of_type("execution_cached") for node in data["nodes"]}

    @property
    def ran(self) -> list[str]:
        return [data["node"] for data in self.of_type("executing") if data["node"] is not None]

    @property
    def outputs(self) -> dict[str, dict]:
        return self.history.get("outputs", {})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_base(base: Path) -> Path:
    """Lay out a ComfyUI base directory."""
    for name in ("diffusion_models", "text_encoders", "vae", "loras"):
        (base / "models" / name).mkdir(parents=True, exist_ok=True)
    for name in ("custom_nodes", "input", "output", "temp", "user"):
        (base / name).mkdir(exist_ok=True)
    return base


def link_checkout(base: Path) -> None:
    """Make this checkout a custom node of a base directory: linked, not copied."""
    link = base / "custom_nodes" / PACK_NAME
    if link.resolve() == PACK_ROOT.resolve():
        return
    if os.path.lexists(link):
        link.unlink()  # to where another checkout is or was
    if sys.platform == "win32":  # a junction needs no privilege, a symbolic link does
        import _winapi

        _winapi.CreateJunction(str(PACK_ROOT), str(link))
    else:
        link.symlink_to(PACK_ROOT, target_is_directory=True)


class ComfyServer:
    def __init__(
        self,
        host: Path,
        base: Path,
        *options: str,
        port: int = 0,
        packs: tuple[str, ...] = (),
        checkout: bool = True,
        environment: dict[str, str] | None = None,
    ):
        """`packs` are entries of base/custom_nodes to load beside this checkout, or alone without it.

        Those of tests/host/packs are copied there.

        Without an environment of its own the server computes in one thread: nano is too small for more, and
        where other programs want the cores, waiting for a second thread takes many times as long as the work.
        """
        self.host, self.base, self.options = Path(host).resolve(), make_base(Path(base)), options
        self.packs = packs
        for pack in packs:
            if (TEST_PACKS / pack).exists():
                shutil.copy(TEST_PACKS / pack, self.base / "custom_nodes")
        if checkout:
            link_checkout(self.base)
            self.packs = (PACK_NAME, *packs)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = self.base / f"server-{self.port}.log"
        self.environment = {"OMP_NUM_THREADS": "1"} if environment is None else environment
        self.process: subprocess.Popen | None = None

    def command(self) -> list[str]:
        import torch

        on_cpu = not torch.cuda.is_available()
        launcher = [str(LAUNCHER)] if on_cpu else []
        return [
            *(sys.executable, *launcher, str(self.host / "main.py")),
            *("--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base)),
            *("--disable-all-custom-nodes", "--whitelist-custom-nodes", *self.packs),
            *("--preview-method", "auto", "--database-url", "sqlite:///:memory:", "--disable-auto-launch"),
            *(["--cpu"] if on_cpu else []),
            *self.options,
        ]

    def start(self, seconds: float = 180.0) -> ComfyServer:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **self.environment}
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                self.command(), cwd=self.base, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        deadline = time.monotonic() + seconds
        while True:
            if self.process.poll() is not None:
                raise ServerFailed(f"ComfyUI ended with code {self.process.returncode}:\n{self.log_tail()}")
            try:
                self.get("/system_stats")
                return self
            except OSError:
                if time.monotonic() > deadline:
                    self.stop()
                    message = f"ComfyUI was not up after {seconds:.0f} s:\n{self.log_tail()}"
                    raise ServerFailed(message) from None
                time.sleep(0.1)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    __enter__ = start

    def __exit__(self, *_) -> None:
        self.stop()

    # -- the log

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.splitlines()[-lines:])

    # -- HTTP

    def get(self, path: str, timeout: float = 30.0) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return answer.read()

    def get_json(self, path: str) -> dict:
        return json.loads(self.get(path))

    def post(self, path: str, body: dict) -> tuple[int, dict]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text else {}

    def object_info(self, node_id: str | None = None) -> dict:
        """One node's contract, or every node's by id."""
        if node_id is None:
            return self.get_json("/object_info")
        return self.get_json(f"/object_info/{node_id}").get(node_id, {})

    def view(self, image: dict) -> bytes:
        """The file that an output entry {"filename", "subfolder", "type"} names."""
        return self.get("/view?" + urllib.parse.urlencode(image))

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    # -- running a graph

    def run(
        self,
        graph: dict,
        workflow: dict | None = None,
        on_event: Callable[[dict], None] | None = None,
        timeout: float = 300.0,
    ) -> Result:
        """Queue a graph and follow it to its end; `workflow` (UI form) goes into the pictures' metadata.

        A refused or failed graph is no exception: see `Result.errors`, one entry per complaint.
        """
        result, client, begun = Result(), uuid.uuid4().hex, time.monotonic()
        body = {"prompt": graph, "client_id": client}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={client}"
        stream = websocket.create_connection(address, timeout=timeout)
        try:
            status, answer = self.post("/prompt", body)
            result.errors = refusals(answer)
            if status != 200:
                return result
            result.prompt_id = answer["prompt_id"]
            for event in self.messages(stream, result, begun + timeout):
                if on_event:
                    on_event(event)
        finally:
            stream.close()
        result.seconds = time.monotonic() - begun
        result.history = self.get_json(f"/history/{result.prompt_id}").get(result.prompt_id, {})
        return result

    def messages(self, stream: websocket.WebSocket, result: Result, deadline: float):
        """Yield text messages until the server says that nothing of this graph executes any more."""
        while True:
            if time.monotonic() > deadline:
                raise ServerFailed(f"the graph did not end in time:\n{self.log_tail()}")
            try:
                message = stream.recv()
            except (OSError, websocket.WebSocketException) as error:
                message = f"the connection to ComfyUI ended ({error}):\n{self.log_tail()}"
                raise ServerFailed(message) from error
            if isinstance(message, bytes):
                note(message, result)
                continue
            event = json.loads(message)
            result.events.append(event)
            data = event["data"]
            if event["type"] == "execution_error":
                result.errors.append(
                    {
                        "node": data["node_id"],
                        "class_type": data["node_type"],
                        "type": data["exception_type"],
                        "message": data["exception_message"],
                    }
                )
            yield event
            if event["type"] == "executing" and data["node"] is None:
                if data.get("prompt_id") == result.prompt_id:
                    return


def note(message: bytes, result: Result) -> None:
    """Keep what a binary message brings."""
    (kind, head), rest = struct.unpack(">II", message[:8]), message[8:]
    if kind == PREVIEW_IMAGE:
        result.previews.append(rest)
    elif kind == NODE_TEXT:
        result.texts.append(rest[head:].decode())


def refusals(answer: dict) -> list[dict]:
    """Flatten the error part of an answer to POST /prompt."""
    errors = [
        {
            "node": node,
            "class_type": entry["class_type"],
            "type": error["type"],
            "message": f"{error['message']} {error['details']}",
        }
        for node, entry in (answer.get("node_errors") or {}).items()
        for error in entry["errors"]
    ]
    whole = answer.get("error")
    if whole and not errors:
        errors.append({"node": None, "class_type": None, "type": whole["type"], "message": whole["message"]})
    return errors
