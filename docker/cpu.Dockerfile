# pgsr-generate on a CPU, with the model that ships.
#
#   docker build --file docker/cpu.Dockerfile --tag pgsr .
#   docker run --rm --volume "$PWD/faces:/faces" --user "$(id -u):$(id -g)" pgsr --count 1000 --out /faces
#
# The other commands are there too: --entrypoint pgsr-upscale; --entrypoint pgsr-serve with --publish
# 127.0.0.1:8000:8000 and --host 0.0.0.0 (docs/serving.md).

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint /constraints.txt "$(echo /wheels/pgsr-*.whl)[cpu,fast,serve]"

# Any user may run it: what is measured once lies in /cache, which can be a volume.
RUN useradd --uid 10001 --create-home pgsr && install --directory --mode 1777 /cache /faces
ENV PGSR_CACHE=/cache
WORKDIR /faces
USER 10001
ENTRYPOINT ["pgsr-generate"]
CMD ["--help"]
