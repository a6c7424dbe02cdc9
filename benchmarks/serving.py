"""Throughput and latency of `anyformer serve`, of the bare batching engine, and of another server.

    python benchmarks/serving.py MODEL --quantize int4
    python benchmarks/serving.py MODEL --quantize int4 --peer http://127.0.0.1:8080/v1 --peer-model NAME
    python benchmarks/serving.py MODEL --embeddings

Clients ask for streamed completions of the same length at the same time; servers take turns, round by round. A peer is
any server with OpenAI's API and the field `ignore_eos`, such as llama-server with the same weights (start it with as
many slots as there are clients, `--parallel 32`).

    tokens/s   of all clients together, from the first request to the last token
    first      median time to the first token, in milliseconds
    p50, p99   median and 99th percentile of the time between two tokens, in milliseconds
    engine     tokens/s of `BatchingEngine` alone, which the server adds its overhead to

With `--embeddings`, clients ask again and again for the vector of a sentence, and the peer is what people write
themselves: sentence-transformers behind FastAPI. Texts/s, and the median time of a request in milliseconds.

Needs `pip install 'anyformer[serve]'`, and sentence-transformers for the last.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

PROMPT = "The history of the printing press in Europe, told by the people who worked with it, begins in"


@dataclass
class Measured:
    speeds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def row(self, name: str) -> str:
        if not self.first:
            return f"{name:<12}{statistics.median(self.speeds):>10.1f}"
        *_, p99 = hundredths = statistics.quantiles(self.between, n=100)
        times = (statistics.median(self.first), hundredths[49], p99)
        return f"{name:<12}{statistics.median(self.speeds):>10.1f}" + "".join(f"{1e3 * each:>10.1f}" for each in times)


NUMBERS = itertools.count(time.time_ns() // 1000)
"""Numbers that prompts begin with, no two alike in any run: no server has the keys and values of one already."""


def clients(url: str, model: str, count: int, tokens: int, measured: Measured) -> None:
    """Ask for texts at the same time, and note the moments at which their events come.

    Bytes are read and events counted, with as little else as can be: the clients share the cores with the server.
    """
    place, began = urlsplit(url), time.perf_counter()
    moments: dict[socket.socket, list[float]] = {}
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            body = {"model": model, "prompt": f"{next(NUMBERS)}. {PROMPT}", "max_tokens": tokens, "temperature": 0}
            sent = json.dumps({**body, "stream": True, "ignore_eos": True}).encode()
            head = f"POST {place.path}/completions HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
            client = socket.create_connection((place.hostname, place.port))
            client.sendall(head.encode() + sent)
            selector.register(client, selectors.EVENT_READ)
            moments[client] = []
        while selector.get_map():
            for key, _ in selector.select():
                client, now = cast("socket.socket", key.fileobj), time.perf_counter()
                received = client.recv(1 << 16)
                if received.startswith(b"HTTP") and b" 200 " not in received[:20]:
                    raise SystemExit(received.decode(errors="replace"))
                if received:
                    moments[client] += [now] * received.count(b"data: {")
                else:
                    selector.unregister(client)
                    client.close()
    ended = time.perf_counter()
    measured.speeds.append(count * tokens / (ended - began))
    for each in moments.values():
        measured.first.append(each[0] - began)
        measured.between += [after - before for before, after in itertools.pairwise(each)]


def engine_alone(model: str, quantize: str | None, counts: list[int], tokens: int) -> dict[int, float]:
    """Tokens/s of the engine without a server; runs in a process of its own, see `main`."""
    import anyformer as af

    loaded, tokenizer = af.load(model, quantize=quantize)
    engine, found = af.BatchingEngine(loaded, tokenizer, slots=max(counts)), dict[int, float]()
    for warm in (True, False):
        for count in counts:
            began = time.perf_counter()
            for _ in range(count):
                engine.submit(f"{next(NUMBERS)}. {PROMPT}", max_new_tokens=8 if warm else tokens, stop_at_eos=False)
            engine.run()
            found[count] = count * tokens / (time.perf_counter() - began)
    return found


def sentence_transformers_server(directory: str, port: int) -> None:
    """Serve embeddings by sentence-transformers; runs in a process of its own."""
    import uvicorn
    from fastapi import FastAPI
    from sentence_transformers import SentenceTransformer

    app, model = FastAPI(), SentenceTransformer(directory, device="cpu")

    @app.post("/v1/embeddings")
    def embeddings(body: dict[str, Any]) -> dict[str, Any]:
        vectors = model.encode(body["input"], show_progress_bar=False)
        return {"data": [{"embedding": vector.tolist()} for vector in vectors]}

    uvicorn.run(app, port=port, log_level="error")


async def embedding_client(port: int, number: int, requests: int, seconds: list[float]) -> None:
    """Ask for one vector after the other, over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for turn in range(requests):
        began = time.perf_counter()
        sent = json.dumps({"model": "model", "input": [f"{turn * 100 + number}. {PROMPT} the city of Mainz."]}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer[:20]:
            raise SystemExit(answer.decode(errors="replace"))
        await reader.readexactly(int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
        seconds.append(time.perf_counter() - began)
    writer.close()


async def embedding_clients(port: int, count: int, requests: int, measured: Measured) -> None:
    began = time.perf_counter()
    await asyncio.gather(*(embedding_client(port, number, requests, measured.first) for number in range(count)))
    measured.speeds.append(count * requests / (time.perf_counter() - began))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def measure_embeddings(model: str, counts: list[int], rounds: int) -> None:
    """Print the table of embeddings, servers taking turns."""
    ports = {"anyformer": free_port(), "peer": free_port()}
    own = [sys.executable, "-m", "anyformer", "serve", f"model={model}", "--port", str(ports["anyformer"])]
    theirs = [sys.executable, __file__, model, "--sentence-transformers", str(ports["peer"])]
    found = {(name, count): Measured() for name in ports for count in counts}
    processes = [subprocess.Popen(argv, stderr=subprocess.DEVNULL) for argv in (own, theirs)]
    try:
        for port in ports.values():
            while True:
                try:
                    asyncio.run(embedding_clients(port, 4, 4, Measured()))
                    break
                except OSError:
                    time.sleep(0.2)
        for _ in range(rounds):
            for count in counts:
                for name, port in ports.items():
                    asyncio.run(embedding_clients(port, count, 160 // count, found[name, count]))
    finally:
        for process in processes:
            process.terminate()
    for count in counts:
        print(f"\n{count} clients     texts/s  milliseconds")
        for name in ports:
            measured = found[name, count]
            median = 1e3 * statistics.median(measured.first)
            print(f"{name:<12}{statistics.median(measured.speeds):>10.1f}{median:>14.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", metavar="URL", help="another server, up to /v1")
    parser.add_argument("--peer-model", default="model")
    parser.add_argument("--embeddings", action="store_true", help="measure embeddings instead")
    parser.add_argument("--sentence-transformers", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--engine", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        for count, speed in engine_alone(options.model, options.quantize, options.clients, options.tokens).items():
            print(count, speed)
        return
    if options.sentence_transformers is not None:
        sentence_transformers_server(options.model, options.sentence_transformers)
        return
    if options.embeddings:
        measure_embeddings(options.model, options.clients, options.rounds)
        return
    port = free_port()
    quantize = ["--quantize", options.quantize] if options.quantize else []
    argv = [sys.executable, "-m", "anyformer", "serve", f"model={options.model}", *quantize]
    argv += ["--port", str(port), "--slots", str(max(options.clients))]
    servers = {"anyformer": (f"http://127.0.0.1:{port}/v1", "model")}
    if options.peer:
        servers["peer"] = (options.peer, options.peer_model)
    found = {(name, count): Measured() for name in (*servers, "engine") for count in options.clients}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            print(server.stderr.readline().strip())
            for url, model in servers.values():
                clients(url, model, max(options.clients), 8, Measured())
            for _ in range(options.rounds):
                for count in options.clients:
                    for name, (url, model) in servers.items():
                        clients(url, model, count, options.tokens, found[name, count])
                alone = [
                    sys.executable,
                    __file__,
                    options.model,
                    *quantize,
                    "--engine",
                    "--tokens",
                    str(options.tokens),
                ]
                alone += ["--clients", *map(str, options.clients)]
                for line in subprocess.run(alone, check=True, capture_output=True, text=True).stdout.splitlines():
                    count, speed = line.split()
                    found["engine", int(count)].speeds.append(float(speed))
        finally:
            server.terminate()
    for count in options.clients:
        print(f"\n{count} clients  tokens/s     first       p50       p99")
        for name in (*servers, "engine"):
            print(found[name, count].row(name))


if __name__ == "__main__":
    main()
