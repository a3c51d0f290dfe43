"""Model, adapter and dataset cards for the Hub: their templates, figures and renderer.

This package imports nothing of `rocket_hf`, so that a card can be rendered from plain values.
"""

if __name__ != "rocket_hf.hub_cards":
    raise ImportError(
        f"this folder is the package rocket_hf.hub_cards, but it was imported as {__name__!r}, which would define "
        "every class a second time: write `import rocket_hf.hub_cards`"
    )
