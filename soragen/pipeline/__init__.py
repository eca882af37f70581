"""What happens, in order: from a request to a video file."""
