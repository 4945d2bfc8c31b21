# pgsr-generate on an NVIDIA GPU, with the model that ships: ONNX Runtime with CUDA and TensorRT.
#
#   docker build --file docker/gpu.Dockerfile --tag pgsr-gpu .
#   docker run --rm --gpus all --volume "$PWD/faces:/faces" --user "$(id -u):$(id -g)" pgsr-gpu \
#       --device cuda --count 100000 --out /faces
#
# The host needs a driver for CUDA 13 (580 or newer) and the NVIDIA Container Toolkit. The base holds what the
# toolkit looks at to refuse an older driver; CUDA's and cuDNN's other libraries come as wheels, in the versions that
# ONNX Runtime is built for. Mount a volume at /cache to keep the engines that TensorRT builds.

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
# Ubuntu keeps no older version of a package to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/pgsr
ENV PATH=/opt/pgsr/bin:$PATH
# TensorRT 10, since ONNX Runtime's TensorRT provider is linked with it.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint /constraints.txt --extra-index-url https://pypi.nvidia.com \
        "$(echo /wheels/pgsr-*.whl)[gpu,trt,fast,serve]" "tensorrt<11"

# Any user may run it: what is measured and built once lies in /cache, which can be a volume.
RUN useradd --uid 10001 --create-home pgsr && install --directory --mode 1777 /cache /faces
ENV PGSR_CACHE=/cache
WORKDIR /faces
USER 10001
ENTRYPOINT ["pgsr-generate"]
CMD ["--help"]
