"""The model, adapter and dataset cards that go to the Hub: their templates and what renders them.

This room lies on the ground floor: it imports nothing of ours, so a card can be made from plain values alone.
"""

if __name__ != "rocket_hf.hub_cards":
    raise ImportError(
        f"this folder is the package rocket_hf.hub_cards, but it was imported as {__name__!r}, which would define "
        "every class a second time: write `import rocket_hf.hub_cards`"
    )
