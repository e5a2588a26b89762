"""Every study and its verdict."""

from scripts.results.tables import markdown, register_table


@register_table
def verdicts(found: dict) -> str:
    """Every study, its verdict and what it measured."""
    order = sorted(found.items(), key=lambda item: item[1]["position"])
    rows = [
        [f"`{name}`", study["verdict"], study["measured"].replace("|", "\\|")]
        for name, study in order
    ]
    return markdown(["study", "verdict", "measured"], rows, slice(0, 0))
