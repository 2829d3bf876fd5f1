"""`python -m guardreasoner_guard` is `guardreasoner`."""

from .cli import main

main()
