"""soragen: a video from a sentence, on the command line."""

__version__ = "0.1.0"
