"""Asks a Triton server by NVIDIA's client, in the server's environment: triton_asking.py URL OUT.npz

What came back, and what pgsr draws and turns there of the same seeds and indices, goes into OUT.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from pgsr import bundle, draws, sphere

TYPES = {"uint64": "UINT64", "float32": "FP32"}
LAST = 2**64 - 1
PAIRS = [(0, 0), (7, 1000), (LAST, LAST), (7, 2)]  # seeds and indices, asked for as one batch
ALONE = range(12)  # of seed 7, asked for by a request each, all at once


def inputs(**arrays: Any) -> list[Any]:
    import tritonclient.http as client

    given = []
    for name, array in arrays.items():
        given.append(client.InferInput(name, list(array.shape), TYPES[array.dtype.name]))
        given[-1].set_data_from_numpy(array)
    return given


def columns(pairs: list[tuple[int, int]]) -> dict[str, Any]:
    table = np.array(pairs, dtype=np.uint64)
    return {"seed": table[:, :1], "index": table[:, 1:]}


def main(url: str, out: str) -> None:
    import tritonclient.http as client  # there is all of it in the server's environment alone

    server = client.InferenceServerClient(url, concurrency=len(ALONE), network_timeout=120)
    pairs = columns(PAIRS)
    latents = server.infer("latents", inputs(**pairs)).as_numpy("latents")
    drawn = np.array([draws.latents(seed, [index], latents.shape[1])[0] for seed, index in PAIRS])
    shipped = bundle.read(bundle.shipped())
    images = server.infer("generator", inputs(latents=latents)).as_numpy("images")
    one_each = [server.async_infer("faces", inputs(**columns([(7, i)]))) for i in ALONE]
    alone = [request.get_result().as_numpy("pixels") for request in one_each]
    np.savez(
        out,
        latents=latents,
        drawn=sphere.toward(drawn, np.array(shipped.centre), shipped.truncation),
        pixels=server.infer("chain", inputs(latents=latents)).as_numpy("pixels"),
        faces=server.infer("faces", inputs(**pairs)).as_numpy("pixels"),
        upscaled=server.infer("upscaler", inputs(images=images)).as_numpy("upscaled"),
        alone=np.concatenate(alone),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
