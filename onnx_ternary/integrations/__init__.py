"""Passes for other tools; each module needs its tool and is imported by nothing else here."""
