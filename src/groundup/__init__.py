"""groundup: a language model from the ground up; raw web pages in, a chat model out, every stage measured."""

__version__ = "0.1.0"
