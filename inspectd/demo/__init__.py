"""The demo: a small trained CLIP, a rendered clip of parts with its ground truth, and what shows the daemon on them."""
