"""Pixels and files: videos and pictures in, videos and pictures out, through the ffmpeg program."""
