"""Every command of README.md in a machine without a network: a namespace with no interface that is up.

    python tests/offline.py            # all, minutes
    python tests/offline.py generate   # those in which a word stands

Each runs as README.md has it, but for the options that say how much: small numbers stand here instead. Three
need their own processes to reach each other, and get the loopback: torchrun, pgsr-serve and --ray.
"""

from __future__ import annotations

import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SHORT = " --set schedule.batch=8 --set run.sample_images=64"
for side in (4, 8, 16, 32, 64):
    SHORT += f" --set schedule.at.{side}.fade_images=16 --set schedule.at.{side}.stable_images=16"
UPSCALE = " --set data.resolution=64 --set schedule.resolution=32 --set schedule.start_resolution=32"
UPSCALE += " --set schedule.stable_images=64 --set schedule.batch=8"

# Of a command: what stands there -> what stands there instead.
LESS = {
    "my-bundle --count 1000 --out faces": "my-bundle --count 8 --out own",  # faces/ is another model's
    "--count 10000000 --out s3://bucket/faces --ray auto": "--count 8 --shard-size 4 --out sets --ray local",
    "--count 1000": "--count 8",
    "--count 100000": "--count 12",
    "--count 64": "--count 6",
    "--seconds 10": "--seconds 0.3",
    "--procedural 500": "--procedural 40",
    "grid 8x8": "grid 2x2",
    "img_celeba/": "img_celeba/ --size 64",
    "pgsr-train faces-64": f"pgsr-train faces-64{SHORT}",
    "pgsr.trainer faces-64": f"pgsr.trainer faces-64{SHORT}",
    "pgsr-train upscale-4x-pixel": f"pgsr-train upscale-4x-pixel{UPSCALE}",
    "pgsr-bench quality": "pgsr-bench quality --images 32",
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
LOOPBACK = ("torchrun ", "pgsr-serve", "--ray local")  # whose own processes talk to each other
ASKED = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8000/', timeout=5).status)"


def commands() -> list[str]:
    """The commands in README.md's blocks, in their order, without what pip and make do."""
    blocks = re.findall(r"^(?:    \S.*\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(pgsr-\w+|torchrun)\b", line)]


def smaller(command: str) -> str:
    for old, new in LESS.items():
        command = re.sub(rf"{re.escape(old)}(?![\w-])", new, command)
    return command


def prepare(folder: Path) -> None:
    """What the commands find: photographs, CelebA, somebody else's weights."""
    import numpy as np
    from PIL import Image

    from pgsr.trainer.data.celeba import LANDMARK_COLUMNS
    from pgsr.trainer.data.celebahq import wild
    from pgsr.trainer.data.procedural import draw

    for name, count, side in (("photos", 40, 80), ("holiday", 2, 40)):
        (folder / name).mkdir()
        for i in range(count):
            Image.fromarray(np.asarray(draw(i, side))).save(folder / name / f"{i}.jpg")
    large = ["-m", "pgsr.trainer.data.cli", "photos", "--out", "large.zip", "--sizes", "16,64"]
    subprocess.run([sys.executable, *large], cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    (folder / "img_celeba").mkdir()
    lines = ["3", " ".join(LANDMARK_COLUMNS)]
    for i in range(3):
        wild.draw(i, wild.view(i)).save(folder / "img_celeba" / f"{i + 1:06d}.jpg")
        places = wild.landmarks(i, wild.view(i)).round().astype(int).ravel()
        lines.append(f"{i + 1:06d}.jpg {' '.join(map(str, places))}")
    (folder / "list_landmarks_celeba.txt").write_text("\n".join(lines) + "\n")
    weights(folder / "karras2018iclr-celebahq-1024x1024.pkl")


def weights(path: Path) -> None:
    import torch

    import peers

    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float32), 8, [8, 8, 4], True, 0.0)
    with peers.saved_as(tfutil=[peers.Network]):
        path.write_bytes(pickle.dumps(peers.nvidia_networks(arrays, arrays), 2))


def answered(command: str, folder: Path) -> tuple[int, str]:
    """Exit code and the last line of a command in a namespace of its own; of a server, whether it answers."""
    up = "ip link set lo up; " if any(word in command for word in LOOPBACK) else ""
    if command.startswith("pgsr-serve"):
        ask = f"{sys.executable} -c {shlex.quote(ASKED)} 2>/dev/null"
        asks = f"for i in $(seq 90); do sleep 1; {ask} && break; done; answered=$?"
        command = f"{command} --port 8000 & server=$!; {asks}; kill $server; wait $server; exit $answered"
    shell = f"{up}! ip -brief address | grep -vw lo || exit 99; {command}"
    line = ["unshare", "--map-root-user", "--net", "bash", "-c", shell]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**ENVIRONMENT, "PATH": path, "PGSR_CACHE": str(folder / "cache")}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    told = (done.stdout + done.stderr).strip().splitlines() or [""]
    return done.returncode, told[-1]


def main(word: str = "") -> int:
    faults = 0
    with tempfile.TemporaryDirectory(prefix="pgsr-offline-") as name:
        prepare(Path(name))
        for command in commands():
            if word not in command:
                continue
            began = time.monotonic()
            code, last = answered(smaller(command), Path(name))
            faults += code != 0
            print(
                f"{'ok' if code == 0 else f'exit code {code}'}, {time.monotonic() - began:.0f} s: {command}",
                flush=True,
            )
            if code:
                print(f"    {last}", flush=True)
    return faults


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    shutil.which("unshare") or sys.exit("unshare is missing: it is in util-linux")
    sys.exit(min(1, main(*sys.argv[1:])))
