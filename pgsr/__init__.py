"""pgsr: photographs -> a small Progressive GAN and an SRGAN -> small graphs -> faces.

The core of the package: what trainer, export, runtime and benchmarks share. It imports none of them.
"""

from pathlib import Path

from .privacy import silence_onnxruntime

__version__ = "0.1.0"

silence_onnxruntime()

# In a checkout the folders trainer/, export/, runtime/ and benchmarks/ stand beside this one and are
# imported as pgsr.trainer and so on, exactly as they are named in an installed package.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "trainer").is_dir():
    __path__.append(str(_checkout))
