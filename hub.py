"""Whether the Hugging Face Hub can be reached, and what it means when it refuses."""

from __future__ import annotations

from .patcher.tensor_file import reason

PROBE_SECONDS = 5.0
NOT_THERE = "it is not there, or not for you: check the name, or log in with `hf auth login`"


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


def refusal(error: BaseException) -> str | None:
    """Why the Hub did not do what it was asked for, in one clause with the fix; None if the error is none of the Hub or
    of the way to it. NOT_THERE for a repository that is not there. Libraries name the Hub's error as their cause."""
    from huggingface_hub import errors

    link: BaseException | None = error
    while link is not None and not isinstance(link, errors.HTTPError | errors.OfflineModeIsEnabled):
        link = link.__cause__
    if link is None:
        return None
    if isinstance(link, errors.OfflineModeIsEnabled):
        return "the Hub is not asked in offline mode: unset HF_HUB_OFFLINE"
    if isinstance(link, errors.GatedRepoError):
        return "it is gated: ask for access on its page on the Hub, and log in with `hf auth login`"
    if isinstance(link, errors.RepositoryNotFoundError):
        return NOT_THERE
    if isinstance(link, errors.RevisionNotFoundError):
        return "it has no such branch, tag or commit: check what follows the @"
    if isinstance(link, errors.HfHubHTTPError):
        return _answer(link.response.status_code, link.server_message or reason(link))
    return f"the connection to the Hub broke ({reason(link)}): try again"


def _answer(status: int, message: str) -> str:
    said = f"the Hub answers {status}, {message.rstrip('.')}"
    if status in (401, 403):
        return f"{said}: log in with `hf auth login`, with a token that may do this"
    return f"{said}: try again later" if status >= 500 or status == 429 else said
