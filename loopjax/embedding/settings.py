"""The options of embedding, as each stage needs them, and back from a store's record."""

from pathlib import Path

from loopjax.audio.decode import DecodeOptions
from loopjax.config import EmbedConfig, from_dict, to_dict
from loopjax.encoders.load import load_encoder
from loopjax.encoders.protocol import Encoder
from loopjax.encoders.space import Space
from loopjax.errors import UserError
from loopjax.store.schema import Project

# At 8 kHz most mel bands lie above the file's own Nyquist frequency and hold rounding noise alone:
# there device and host agree to a cosine of 0.99987 only, so `auto` takes the reference's path.
HOST_BY_CHOICE_HZ = frozenset([8000])


def as_encoder(encoder: Encoder | str | Path, config: EmbedConfig) -> Encoder:
    """The encoder of this name or folder; an encoder stays itself.

    Raises:
        UserError: there is none.
    """
    if isinstance(encoder, str | Path):
        return load_encoder(encoder, config.precision)
    if not hasattr(encoder, "front_end"):
        raise UserError(
            f"encoder is {encoder!r}: expected a name such as 'loopjax-nano', a folder, or what "
            "load_encoder returns"
        )
    return encoder


def check_config(config: EmbedConfig) -> None:
    """Refuses what a config file could not say, before anything is read or written.

    Raises:
        UserError: names the option.
    """
    from_dict(EmbedConfig, to_dict(config))


def space_of(encoder: Encoder, config: EmbedConfig) -> Space:
    """The space that an encoder's embeddings lie in, made with these options.

    Raises:
        UserError: an option has no meaning.
    """
    return Space(
        encoder=encoder.id,
        weights_sha256=encoder.weights_sha256,
        embedding_dim=encoder.embedding_dim,
        front_end=encoder.mel_config,
        fusion=encoder.fusion,
        precision=encoder.precision,
        crops=config.crops,
        resample=config.resample,
        mono=config.mono,
        sanitize=config.sanitize,
        accept_truncated=config.accept_truncated,
        location=encoder.location,
        assumptions=encoder.assumptions,
    )


def projection_of(encoder: Encoder) -> Project | None:
    """What puts an encoder's embeddings beside texts; None where it knows none."""
    return None if encoder.joint_dim is None else encoder.project


def config_of(space: Space) -> EmbedConfig:
    """The options that put new audio into this space."""
    return EmbedConfig(
        encoder=space.location or space.encoder,
        precision=space.precision,
        crops=space.crops,
        resample=space.resample,
        mono=space.mono,
        sanitize=space.sanitize,
        accept_truncated=space.accept_truncated,
    )


def decode_options(encoder: Encoder, config: EmbedConfig) -> DecodeOptions:
    """What decoding delivers: samples at a rate that the encoder's front end takes."""
    if config.resample == "host":
        rates_hz = (encoder.sample_rate_hz,)
    elif config.resample == "device":
        rates_hz = tuple(encoder.device_rates_hz)
    else:
        left_to_host = HOST_BY_CHOICE_HZ - {encoder.sample_rate_hz}
        rates_hz = tuple(rate for rate in encoder.device_rates_hz if rate not in left_to_host)
    return DecodeOptions(
        mono=config.mono,
        accept_truncated=config.accept_truncated,
        sanitize=config.sanitize,
        min_duration_s=config.min_duration_s,
        max_duration_s=config.max_duration_s,
        target_rate_hz=encoder.sample_rate_hz,
        device_rates_hz=rates_hz,
        host_resampling=config.resample != "device",
    )
