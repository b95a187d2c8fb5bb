"""The demo: a picture world written in the official file formats, and the tiny BLIP-2 that was trained on it."""
