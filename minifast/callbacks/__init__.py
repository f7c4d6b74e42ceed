"""Callbacks over the one loop, an idea a file."""
