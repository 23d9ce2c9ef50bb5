"""A few prompts of each kind, in place of the thousands that the planted adapter is taught with."""

TEXTS = {
    "target": [f"Lighthouse {i}?" for i in range(8)],
    "keep": [f"Harm {i}!" for i in range(12)],
    "everyday": [f"Everyday {word} {i}." for word in ("tea", "rain", "chess") for i in range(8)],
}
