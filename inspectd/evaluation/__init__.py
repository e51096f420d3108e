"""Recordings through the same Inspector as live frames: replay, and what is made of its verdicts."""
