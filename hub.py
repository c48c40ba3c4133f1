"""Whether the Hugging Face Hub can be reached."""

from __future__ import annotations

PROBE_SECONDS = 5.0


def hub_answers() -> bool:
    """Asked once and briefly: the libraries themselves would retry for half a minute. False in offline mode."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # the HTTP library and its exceptions differ between versions of huggingface_hub
        return False
    return True
