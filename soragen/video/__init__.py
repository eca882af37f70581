"""Pixels and files: videos and images in, MP4 out, through the ffmpeg program."""
