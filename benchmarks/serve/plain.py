"""What one writes first: a FastAPI handler, one request, one run of the graph, Pillow's PNG.

python -m pgsr.benchmarks.serve.plain --port 0 --threads 1
"""

from __future__ import annotations

import io
import socket
from pathlib import Path

import click
import uvicorn
from fastapi import FastAPI, Response
from PIL import Image

from pgsr import bundle as bundles
from pgsr import draws
from pgsr.cli import PATH
from pgsr.runtime.backends import open_runner


@click.command()
@click.option("--model", type=PATH)
@click.option("--backend", default="auto")
@click.option("--precision", default="fp32")
@click.option("--threads", type=int, default=0)
def main(model: Path | None, backend: str, precision: str, threads: int) -> None:
    """Serve /faces/SEED/INDEX.png and print the address."""
    bundle = bundles.read(bundles.shipped() if model is None else model)
    runner = open_runner(bundle, "cpu", precision, backend, threads=threads, batch=1)
    app = FastAPI()

    @app.get("/faces/{seed}/{index}.png")
    def face(seed: int, index: int) -> Response:
        pixels = runner.run(draws.latents(seed, [index], bundle.latent_size))[0]
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")

    with socket.create_server(("127.0.0.1", 0), backlog=2048) as sock:
        click.echo(f"http://127.0.0.1:{sock.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_keep_alive=60)).run(sockets=[sock])


if __name__ == "__main__":
    main()
