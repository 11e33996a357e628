"""Audio files and pipes in and out, and resampling. Imports no torch."""

from q2d2cli.audio.checking import check_finite
from q2d2cli.audio.finding import AUDIO_SUFFIXES, SNDFILE_SUFFIXES, audio_files, is_foreign, read_list
from q2d2cli.audio.reading import AudioReader, file_seconds, read_mono, read_original
from q2d2cli.audio.resampling import Resampler, SeekableResampler
from q2d2cli.audio.sources import SAMPLE_FORMATS, RawFormat
from q2d2cli.audio.tags import read_picture, tagged_at_end
from q2d2cli.audio.writing import SoundFileWriter, WavWriter, open_sink, output_format

__all__ = [
    "AUDIO_SUFFIXES",
    "SAMPLE_FORMATS",
    "SNDFILE_SUFFIXES",
    "AudioReader",
    "RawFormat",
    "Resampler",
    "SeekableResampler",
    "SoundFileWriter",
    "WavWriter",
    "audio_files",
    "check_finite",
    "file_seconds",
    "is_foreign",
    "open_sink",
    "output_format",
    "read_list",
    "read_mono",
    "read_original",
    "read_picture",
    "tagged_at_end",
]
