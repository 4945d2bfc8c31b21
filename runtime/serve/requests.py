"""What requests may say, as pydantic checks it and as the OpenAPI document tells it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..synthesizer import LIMIT

Number = Annotated[int, Field(ge=0, lt=LIMIT)]
FaceFormat = Literal["png", "jpeg", "webp", "jxl"]
FACES = 10_000  # of a POST; what it may make in all is bounded by the server's limits

MEDIA = {
    **{"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "jxl": "image/jxl"},
    **{"mp4": "video/mp4", "gif": "image/gif", "tar": "application/x-tar"},
}


class _Strict(BaseModel):
    """A name that is not known is an error that names it."""

    model_config = ConfigDict(extra="forbid")


class WhichModel(_Strict):
    """Which bundle."""

    model: str = Field("", description="Its name in /v1/models; the first one unless given.")
    graph: str = Field(
        "",
        pattern=r"^[0-9a-f]{0,64}$",
        description="The first digits of the sha256 of its graph: another one is refused, so that an address "
        "never gives another face when a bundle was replaced.",
    )


class Appearance(WhichModel):
    """How faces look."""

    truncation: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Below 1: less variety, more typical faces. Unless given, the model's own.",
    )
    size: int = Field(
        0, ge=0, le=4096, description="Pixels a side, reduced by Lanczos; 0: as the network makes them."
    )
    stage: Literal["chain", "generator"] = Field(
        "chain", description="generator: as it is before the upscaler."
    )
    quality: int | None = Field(None, ge=1, le=100, description="Of jpeg (else 95) and webp (else 90).")


class ImagesQuery(Appearance):
    """GET /v1/images."""

    seed: Number = Field(0, description="Names a sequence of faces.", examples=[7])
    index: Number = Field(0, description="The first one's place in it.", examples=[12])
    count: int = Field(1, ge=1, description="Of one, the picture; of more, a tar of them.", examples=[1])
    format: FaceFormat = "png"


class ImageQuery(Appearance):
    """GET /v1/images/{seed}/{index}.png."""


class Place(_Strict):
    """A face: of a seed and an index, or of a latent."""

    seed: Number = 0
    index: Number = 0
    latent: list[Annotated[float, Field(ge=-1e4, le=1e4)]] | None = Field(
        None, description="Standard normal numbers, as many as the model takes, in place of seed and index."
    )


class LatentsBody(Appearance):
    """POST /v1/latents."""

    faces: list[Place] = Field(min_length=1, max_length=FACES)
    frames: int = Field(
        0, ge=0, description="More than 0: so many pictures in all, on the way from each face to the next."
    )
    loop: bool = Field(False, description="The way leads back to the first face.")
    format: FaceFormat = "png"

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"faces": [{"seed": 0, "index": 3}, {"seed": 0, "index": 9}], "frames": 24}]
        },
    )


class VideoQuery(WhichModel):
    """GET /v1/video."""

    seed: Number = 0
    seconds: float = Field(4.0, gt=0, le=3600, examples=[4])
    fps: int = Field(0, ge=0, le=240, description="Frames a second; 0: 60, or 50 of gif.")
    smooth: float = Field(0.75, ge=0, le=60, description="Seconds of the latents' blur: more is slower.")
    loop: bool = Field(False, description="The end runs into the beginning.")
    truncation: float | None = Field(None, ge=0, le=1, description="Unless given, the model's own.")
    quality: int | None = Field(None, ge=1, le=100, description="Of webp.")
    format: Literal["mp4", "webp", "gif"] = "mp4"


class UpscaleQuery(WhichModel):
    """POST /v1/upscale."""

    format: Literal["png", "jpeg", "webp"] | None = Field(None, description="The picture's own unless given.")
    quality: int | None = Field(None, ge=1, le=100)
    job: str = Field(
        "",
        pattern=r"^([0-9a-f]{32})?$",
        description="32 hexadecimal digits of your own, under which /v1/upscale/{job} tells how far it is.",
    )


class ModelEntry(BaseModel):
    """A bundle."""

    name: str
    graph: str
    bundle: str
    size: int
    generator_size: int
    scale: int
    latent_size: int
    truncation: float = Field(description="Of its faces, where a request says nothing.")
    stages: list[str]
    upscales: bool
    enlarges: int = Field(description="How many times as large /v1/upscale makes a picture.")
    formats: list[str]
    precision: str
    provider: str
    batch: int
    licence: str


class Bounds(BaseModel):
    """What may be asked for."""

    count: int
    frames: int
    pixels: int
    body: int


class ModelsAnswer(BaseModel):
    """GET /v1/models."""

    models: list[ModelEntry]
    limits: Bounds
    version: str


class ProgressAnswer(BaseModel):
    """GET /v1/upscale/{job}."""

    done: float = Field(description="0 to 1.")
    waiting: int = Field(description="Pictures before it.")


class ErrorAnswer(BaseModel):
    """Any answer that is not what was asked for."""

    error: str = Field(description="One sentence that says what to do.")
    request: str = Field(description="The request's id, which the log has, too.")
