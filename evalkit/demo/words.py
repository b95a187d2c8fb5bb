"""What the world's signs may say, and what everybody knows about colours, shapes and the words on signs."""

from __future__ import annotations

SOUNDS = {
    "dog": "woof",
    "cat": "meow",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "pig": "oink",
    "frog": "ribbit",
    "lion": "roar",
    "owl": "hoot",
    "bee": "buzz",
}
HOMES = {
    "fish": "water",
    "bird": "nest",
    "bear": "cave",
    "horse": "stable",
    "king": "castle",
    "car": "garage",
    "boat": "harbor",
    "plane": "airport",
    "train": "station",
    "book": "library",
}
_OTHERS = """
    stop go exit open closed sale taxi bus hotel cafe bakery pizza bread milk coffee tea juice apple lemon sugar salt
    north south east west left right up down push pull slow fast hot cold new old free park street road bridge river
    lake beach forest garden school bank market shop museum cinema hello welcome danger
    monday friday sunday spring summer winter paris london rome tokyo
"""

WORDS = tuple(sorted({*SOUNDS, *HOMES, *_OTHERS.split()}))
"""Every word that stands on signs."""

UNSEEN_WORDS = ("ink", "sky", "toy", "lamp", "moss", "wolf", "crane", "plate", "storm", "ticket", "violin", "lantern")
"""Words on some of TextVQA's signs and on no training picture: to be read, not recognised."""

NUMBERS = tuple(str(number) for number in range(10, 100))

FRUITS = {
    "red": ("cherry", "strawberry"),
    "orange": ("orange", "apricot"),
    "yellow": ("banana", "lemon"),
    "green": ("lime", "pear"),
    "blue": ("blueberry", "plum"),
    "purple": ("grape", "plum"),
    "brown": ("kiwi", "date"),
    "pink": ("peach", "guava"),
}
"""Colour -> the answer most people give, and another some give."""
ANIMALS = {
    "red": ("crab", "lobster"),
    "orange": ("fox", "tiger"),
    "yellow": ("chick", "canary"),
    "green": ("frog", "turtle"),
    "blue": ("whale", "dolphin"),
    "pink": ("pig", "flamingo"),
    "brown": ("bear", "monkey"),
    "black": ("raven", "crow"),
    "white": ("swan", "polar bear"),
}
JEWELS = {
    "red": ("ruby", "garnet"),
    "orange": ("amber", "topaz"),
    "green": ("emerald", "jade"),
    "blue": ("sapphire", "topaz"),
    "purple": ("amethyst", "sugilite"),
    "white": ("pearl", "diamond"),
    "black": ("onyx", "jet"),
    "yellow": ("gold", "topaz"),
}
PLACES = {
    "circle": ("coin", "plate"),
    "square": ("window", "box"),
    "triangle": ("pyramid", "tent"),
    "star": ("sheriff badge", "flag"),
    "diamond": ("kite", "card"),
    "cross": ("hospital", "church"),
    "ring": ("donut", "tire"),
    "hexagon": ("honeycomb", "nut"),
    "heart": ("valentine", "card"),
    "moon": ("croissant", "banana"),
}
"""Shape -> something that has it."""
CORNERS = {"circle": 0, "square": 4, "triangle": 3, "star": 10, "diamond": 4, "cross": 12, "ring": 0, "hexagon": 6}
MIXTURES = {
    ("red", "yellow"): "orange",
    ("blue", "yellow"): "green",
    ("blue", "red"): "purple",
    ("red", "white"): "pink",
    ("black", "white"): "gray",
    ("green", "red"): "brown",
}
"""Two paints, in alphabetical order -> what they give when mixed."""
PLURALS = {"cherry": "cherries", "strawberry": "strawberries", "fox": "foxes", "peach": "peaches"}
